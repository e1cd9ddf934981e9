"""How each variant is drawn: the same colour, dash and marker in every figure; the reference is black."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from matplotlib.lines import Line2D

if TYPE_CHECKING:
    from .results import Results

Dash: TypeAlias = Literal["-", "--", "-.", ":"]

# Paul Tol's "muted" scheme (personal.sron.nl/~pault), one more of his and an orange: told apart with any colour vision
COLOURS = ("#CC6677", "#332288", "#117733", "#88CCEE", "#882255", "#DDCC77", "#44AA99", "#AA4499", "#999933", "#661100",
           "#E69F00")  # fmt: skip
DASHES: tuple[Dash, ...] = ("-", "--", "-.")  # after as many variants as are easily told apart by colour alone
SAME_DASH = 6
MARKERS = "osD<>PXphd"  # one fewer than colours, so that a colour comes with another marker in each round
REFERENCE = "#000000"


@dataclass(frozen=True)
class Style:
    """How a variant is drawn."""

    colour: str
    dash: Dash
    marker: str


def styles_of(results: Results) -> dict[str, Style]:
    """How each variant is drawn, in every figure."""
    others = [variant for variant in results.variants if variant != results.reference]
    found = {results.reference: Style(REFERENCE, "-", "*")}
    for number, variant in enumerate(others):
        dash = DASHES[number // SAME_DASH % len(DASHES)]
        found[variant] = Style(COLOURS[number % len(COLOURS)], dash, MARKERS[number % len(MARKERS)])
    return found


def handle(style: Style, label: str, has_marker: bool = True) -> Line2D:
    """A variant's line in a legend, with its marker or without."""
    marker = style.marker if has_marker else ""
    return Line2D([], [], color=style.colour, linestyle=style.dash, marker=marker, markersize=5, label=plain(label))


def plain(text: str) -> str:
    """A text that is drawn as it is: no dollar begins a formula, and no label is hidden for its first underscore."""
    shown = text.replace("$", r"\$")
    return f"\N{WORD JOINER}{shown}" if shown.startswith("_") else shown
