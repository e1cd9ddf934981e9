"""What an inspection says, in words that need no knowledge of the method: for the console and for inspect.md."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from .inspection import median_coverage, rank_in_all, rank_in_half

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .inspection import Inspection, Layer

SHARE = 0.9  # of the squared gradient, for "the rank that would be needed"
LISTED = 10  # best and worst layers in inspect.md
HEADINGS = ("kind of layer", "layers", "median norm", "median share", "lowest share", "90 % in half", "90 % in all")
MEANS = (
    "What it means: a step of gradient descent on all weights follows this gradient. A LoRA-GA start of rank {rank} "
    "can step along its {directions} strongest singular directions; the share is what they hold of its squared norm."
)
DOES_NOT_SAY = (
    "What it does not say: how good the model will be. It is one gradient, at the base model's weights. Training "
    "changes it at every step, AdamW rescales it, and a low share does not show that an adapter of this rank ends "
    "worse. It compares layers, data and ranks, not methods."
)
MORE_ROWS = (
    "The shares depend on how many rows were looked at, and move in either direction with more of them: before you "
    "rely on a number, look at four times as many (gradient_batches) and see whether it holds."
)
COLUMNS = (
    "Share: of the squared norm of a layer's gradient, what rank {rank} covers with its first {directions} singular "
    "values. Norm: Frobenius, in nats of mean loss per unit of weight. 90 % in half, in all: the rank that "
    "covers 90 % in half of the kind's layers, and in all of them."
)
LAYER_HEADINGS = ("layer", "shape", "norm", "share", "rank for 90 %")


def answer(inspection: Inspection) -> list[str]:
    """Whether a low-rank adapter reaches the gradient, a sentence a line.

    Args:
        inspection: what was found.

    Returns:
        What the rank covers, what 90 % would take, and what was looked at.
    """
    rank, worst, layers = inspection.rank, inspection.worst, inspection.layers
    known = inspection.largest_known_rank
    median, lowest = percent(inspection.median_coverage(rank)), percent(worst.coverage(rank))
    half, every = _rank(rank_in_half(layers, SHARE), known), _rank(rank_in_all(layers, SHARE), known)
    covers = f"Rank {rank} covers {median} of the squared gradient in the median layer, {lowest} in the worst"
    tokens = f"{inspection.loss_terms:g} target tokens in {inspection.micro_batches} micro-batches"
    lines = [
        f"{covers} ({worst.name}).",
        f"90 % would need {half} in half of the layers, {every} in all of them.",
        f"Looked at: the gradient over {tokens}, of {len(layers)} layers; {_how(inspection)}.",
    ]
    if lacking := inspection.without_gradient:
        lines.append(f"{len(lacking)} layers have no gradient on these rows, such as {lacking[0]}; they are left out.")
    return lines


def meaning(rank: int) -> list[str]:
    """What the numbers mean, and what they do not say.

    Args:
        rank: of the adapter.

    Returns:
        A paragraph an item.
    """
    return [MEANS.format(rank=rank, directions=2 * rank), DOES_NOT_SAY, MORE_ROWS]


def kind_rows(inspection: Inspection) -> list[tuple[str, ...]]:
    """A row for each kind of layer, under HEADINGS."""
    return [(kind, *_of_kind(layers, inspection)) for kind, layers in inspection.kinds().items()]


def layer_rows(layers: Sequence[Layer], inspection: Inspection) -> list[tuple[str, ...]]:
    """A row for each of some layers, under LAYER_HEADINGS."""
    return [
        (
            layer.name,
            f"{layer.spectrum.shape[0]} x {layer.spectrum.shape[1]}",
            f"{layer.spectrum.norm:.3g}",
            percent(layer.coverage(inspection.rank)),
            rank_text(layer.spectrum.rank_for(SHARE), inspection.largest_known_rank),
        )
        for layer in layers
    ]


def markdown(inspection: Inspection, subject: str) -> str:
    """The whole of inspect.md.

    Args:
        inspection: what was found.
        subject: "MODEL on DATA".

    Returns:
        Markdown, with the pictures beside it.
    """
    rank = inspection.rank
    ranked = sorted(inspection.layers, key=lambda layer: layer.coverage(rank))
    listed = min(LISTED, len(ranked))
    parts = [
        f"# The gradient of {subject}",
        *answer(inspection),
        *meaning(rank),
        COLUMNS.format(rank=rank, directions=2 * rank),
        "## Kinds of layers",
        _table(HEADINGS, kind_rows(inspection)),
        f"## The {listed} layers that rank {rank} covers least",
        _table(LAYER_HEADINGS, layer_rows(ranked[:listed], inspection)),
        f"## The {listed} layers that it covers most",
        _table(LAYER_HEADINGS, layer_rows(ranked[: -listed - 1 : -1], inspection)),
        "## Pictures",
        *(f"![{title}]({name})" for name, title in PICTURES.items()),
        "All numbers: [inspect.json](inspect.json).",
    ]
    return "\n\n".join(parts) + "\n"


PICTURES = {
    "coverage.png": "coverage against rank",
    "coverage_by_layer.png": "coverage by block and kind of layer",
    "spectrum.png": "singular values of every layer",
    "gradient.png": "heat map of one layer's gradient",
}


def percent(share: float) -> str:
    """A share as people write it; only what is all of it to rounding is 100 %."""
    if share >= 0.9995:
        return "100 %" if share > 1 - 1e-9 else "> 99.9 %"
    return f"{100 * share:.1f} %"


def rank_text(rank: int | None, known: int | None) -> str:
    """A rank in a table; where it is not known, that it is above those that are."""
    return f"> {known}" if rank is None else str(rank)


def _rank(rank: int | None, known: int | None) -> str:
    return f"more than rank {known}, the last one known," if rank is None else f"rank {rank}"


def _how(inspection: Inspection) -> str:
    if inspection.is_whole:
        return "all singular values are known"
    return (
        f"of a layer at least its first {2 * (inspection.largest_known_rank or 0)} singular values are estimated, and "
        "of the rest their norm (estimator: streaming)"
    )


def _of_kind(layers: Sequence[Layer], inspection: Inspection) -> tuple[str, ...]:
    rank, known = inspection.rank, inspection.largest_known_rank
    norm = statistics.median(layer.spectrum.norm for layer in layers)
    return (
        str(len(layers)),
        f"{norm:.3g}",
        percent(median_coverage(layers, rank)),
        percent(min(layer.coverage(rank) for layer in layers)),
        rank_text(rank_in_half(layers, SHARE), known),
        rank_text(rank_in_all(layers, SHARE), known),
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: names to the left, numbers to the right."""
    lines = [" | ".join(headings), " | ".join(["---", *["---:"] * (len(headings) - 1)]), *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines)
