"""Pictures of an inspection: the three panels of the paper's Figure 5, and coverage by block and kind of layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from ..figures import DOTS_PER_INCH, HEIGHT, WIDTH
from .text import SHARE, percent

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from .inspection import Inspection, Layer

VALUES_DRAWN = 256
RANKS_DRAWN = 128
LINE, BAND, LOWEST, MARK = "#1f4e79", "#9db7d1", "#c0392b", "0.35"
SMALLEST_RATIO = 1e-7  # to the largest singular value: below is float32's rounding
MOST_HEIGHT, WRITTEN_ROWS = 16.0, 48  # inches; rows up to which cells have their number


def draw_all(inspection: Inspection, subject: str, folder: Path) -> None:
    """Draws the four pictures.

    Args:
        inspection: what was found.
        subject: "MODEL on DATA", for the titles.
        folder: where they go.
    """
    draw_heat_map(inspection, subject, folder / "gradient.png")
    draw_spectrum(inspection, subject, folder / "spectrum.png")
    draw_coverage(inspection, subject, folder / "coverage.png")
    draw_coverage_by_layer(inspection, subject, folder / "coverage_by_layer.png")


def draw_heat_map(inspection: Inspection, subject: str, path: Path) -> None:
    """Draws |G| of one layer on a logarithmic colour scale (Figure 5 left).

    Args:
        inspection: what was found.
        subject: "MODEL on DATA", for the title.
        path: the PNG file to write.
    """
    found = inspection.heat_map
    means = found.means.numpy()
    positive = means[means > 0]
    # a few entries near zero, or a single column of large ones, would take most of the scale
    low, high = np.quantile(positive, (0.01, 0.99))
    figure, axes = _figure()
    d_out, d_in = found.shape
    image = axes.imshow(
        means,
        norm=LogNorm(low, max(high, 1.001 * low)),
        cmap="magma",
        aspect="auto",
        interpolation="nearest",
        extent=(0, means.shape[1] * found.side, means.shape[0] * found.side, 0),
    )
    axes.set(xlim=(0, d_in), ylim=(d_out, 0))
    axes.set_xlabel(f"input of the layer, 1 to {d_in}")
    axes.set_ylabel(f"output of the layer, 1 to {d_out}")
    of = "mean |dL/dW|" if found.side == 1 else f"mean |dL/dW| of {found.side} x {found.side} weights"
    figure.colorbar(image, ax=axes, label=f"{of} (nats per unit of weight)", extend="both")
    part = (
        ""
        if found.part_of_rank is None
        else f"\nof the gradient its part of rank {found.part_of_rank}, which is what is known"
    )
    above = f"the brightest 1 % lies above the scale, up to {positive.max():.2g}" if positive.max() > high else ""
    _title(axes, f"Gradient of {found.layer}", inspection, subject, above + part)
    figure.savefig(path)


def draw_spectrum(inspection: Inspection, subject: str, path: Path) -> None:
    """Draws every layer's singular values beside its largest one, coloured by kind (Figure 5 middle).

    Args:
        inspection: what was found.
        subject: "MODEL on DATA", for the title.
        path: the PNG file to write.
    """
    figure, axes = _figure()
    kinds = inspection.kinds()
    for colour, (kind, layers) in zip(_colours(len(kinds)), kinds.items(), strict=True):
        ratios = [_ratios(layer) for layer in layers]
        for each in ratios:
            axes.plot(range(1, len(each) + 1), _drawn(each), color=colour, alpha=0.2, linewidth=0.6)
        shortest = min(map(len, ratios))
        median = np.median([each[:shortest] for each in ratios], axis=0)
        axes.plot(range(1, shortest + 1), _drawn(median), color=colour, linewidth=2.2, label=kind)
    axes.set(xscale="log", yscale="log", xlim=(1, None))
    axes.set_ylim(top=1.2)
    axes.axvline(2 * inspection.rank, color=MARK, linestyle=":", linewidth=1.2)
    axes.annotate(
        f" what rank {inspection.rank} reaches:\n left of {2 * inspection.rank}",
        (2 * inspection.rank, 0.98),
        xycoords=("data", "axes fraction"),
        va="top",
        color=MARK,
    )
    _powers_of_two(axes, VALUES_DRAWN)
    axes.set_xlabel("number of the singular value, from the largest")
    axes.set_ylabel("singular value / largest one of the layer")
    _title(axes, "Singular values of each layer's gradient", inspection, subject, _known_values(inspection))
    axes.grid(alpha=0.3)
    axes.legend(title="thick: median of the kind\nthin: one layer", frameon=False, loc="lower left")
    figure.savefig(path)


def draw_coverage(inspection: Inspection, subject: str, path: Path) -> None:
    """Draws coverage against rank: the median layer, a band of most layers, and the lowest one (Figure 5 right).

    Args:
        inspection: what was found.
        subject: "MODEL on DATA", for the title.
        path: the PNG file to write.
    """
    ranks = range(1, min(RANKS_DRAWN, inspection.largest_known_rank or RANKS_DRAWN) + 1)
    shares = np.array([[layer.coverage(rank) for rank in ranks] for layer in inspection.layers])  # (layers, ranks)
    low, median, high = np.quantile(shares, (0.1, 0.5, 0.9), axis=0)
    figure, axes = _figure()
    axes.fill_between(ranks, low, high, color=BAND, alpha=0.45, linewidth=0, label="middle 80 % of the layers")
    axes.plot(ranks, median, color=LINE, linewidth=2, label="median layer")
    axes.plot(ranks, shares.min(axis=0), color=LOWEST, linewidth=1.6, label="lowest layer at each rank")
    axes.axhline(SHARE, color=MARK, linestyle=":", linewidth=1, label="90 %")
    at = inspection.rank
    for value, colour in ((inspection.median_coverage(at), LINE), (inspection.worst.coverage(at), LOWEST)):
        axes.plot([at], [value], "o", color=colour)
        axes.annotate(
            percent(value),
            (at, value),
            xytext=(6, -6),
            textcoords="offset points",
            va="top",
            color=colour,
            weight="bold",
        )
    axes.axvline(at, color=MARK, linestyle=":", linewidth=1)
    axes.set(xscale="log", xlim=(1, max(RANKS_DRAWN, at)), ylim=(0, 1.02))
    _powers_of_two(axes, RANKS_DRAWN)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("rank r of the adapter")
    axes.set_ylabel("share of the squared gradient in 2r singular directions")
    _title(axes, "How much of the gradient a rank covers", inspection, subject, _known_ranks(inspection))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def draw_coverage_by_layer(inspection: Inspection, subject: str, path: Path) -> None:
    """Draws the coverage at the recipe's rank as a table of block by kind of layer.

    Args:
        inspection: what was found.
        subject: "MODEL on DATA", for the title.
        path: the PNG file to write.
    """
    kinds = list(inspection.kinds())
    blocks = sorted({layer.block for layer in inspection.layers}, key=lambda block: -1 if block is None else block)
    cells = np.full((len(blocks), len(kinds)), math.nan)
    for layer in inspection.layers:
        at = blocks.index(layer.block), kinds.index(layer.kind)
        cells[at] = np.fmin(
            cells[at], 100 * layer.coverage(inspection.rank)
        )  # the lowest where a cell has several layers
    figure, axes = _figure(max(WIDTH, 0.9 * len(kinds) + 2), min(MOST_HEIGHT, max(HEIGHT, 0.26 * len(blocks) + 2)))
    lowest = min(90, 10 * math.floor(np.nanmin(cells) / 10))  # of the colours: a full ten percent
    image = axes.imshow(cells, cmap="viridis", vmin=lowest, vmax=100, aspect="auto")
    if len(blocks) <= WRITTEN_ROWS:
        for (row, column), share in np.ndenumerate(cells):
            if not math.isnan(share):
                colour = "black" if share > (100 + lowest) / 2 else "white"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right", rotation_mode="anchor")
    step = max(1, len(blocks) // 30)
    names = ["none" if block is None else str(block) for block in blocks]
    axes.set_yticks(range(0, len(blocks), step), names[::step])
    axes.set_xlabel("kind of layer")
    axes.set_ylabel("block, from the input on")
    figure.colorbar(image, ax=axes, label="share of the squared gradient covered (%)", ticks=MaxNLocator(integer=True))
    _title(axes, f"How much of the gradient rank {inspection.rank} covers", inspection, subject)
    figure.savefig(path)


def _figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    # A Figure of its own, not pyplot's: no global state, and no display is looked for.
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    return figure, figure.add_subplot()


def _colours(count: int) -> list[Any]:
    if count <= 10:
        return list(matplotlib.colormaps["tab10"].colors[:count])  # type: ignore[attr-defined]
    return [matplotlib.colormaps["turbo"](index / (count - 1)) for index in range(count)]


def _ratios(layer: Layer) -> np.ndarray[Any, Any]:
    values = np.array(layer.spectrum.values[:VALUES_DRAWN])
    return values / values[0]


def _drawn(ratios: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.where(ratios > SMALLEST_RATIO, ratios, math.nan)


def _powers_of_two(axes: Axes, most: int) -> None:
    axes.xaxis.set_major_locator(FixedLocator([2**power for power in range(int(math.log2(most)) + 1)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))


def _title(axes: Axes, what: str, inspection: Inspection, subject: str, note: str = "") -> None:
    """What a picture shows, and below it of which model and data, and how it was found."""
    figure = axes.get_figure()
    assert figure is not None
    figure.suptitle(what)
    tokens, batches = inspection.loss_terms, inspection.micro_batches
    lines = (subject, f"mean over {tokens:,.0f} target tokens in {batches} micro-batches", note)
    axes.set_title("\n".join(line for line in lines if line), fontsize="small")


def _known_values(inspection: Inspection) -> str:
    known = inspection.largest_known_rank
    return "" if known is None else f"of most layers only the first {2 * known} are known, by estimate"


def _known_ranks(inspection: Inspection) -> str:
    known = inspection.largest_known_rank
    return "" if known is None else f"estimated, and known up to rank {known} only"
