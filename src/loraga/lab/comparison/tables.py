"""The tables of a comparison: each variant at its best learning rate, all learning rates, and suggested rates."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import notes
from .entries import done, entries_of, headline, reference_of, shown_rows, values
from .statistics import (
    Difference,
    RateRange,
    StepsToEnd,
    auto_gap,
    differences,
    geometric_mean,
    rate_range,
    spread,
    steps_to_end,
)
from .table import Cell, Column, Table
from .words import EDGE, GIB, NOTHING, Scale, count_text, factor_text, rate_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .entries import Entry, Quantity, Where
    from .results import Results, Run, Status

STEP = "a step"  # among the seconds of a run
LOSS = Scale(is_share=False, digits=4)
QUANTITIES: tuple[Quantity, ...] = ("score", "loss")
SPREAD = ("mean", "std", "seeds")
INTERVAL = ("difference", "difference_low", "difference_high", "difference_seeds")


def tables_of(results: Results) -> tuple[Table, ...]:
    """All tables that there is something to say in.

    Args:
        results: of the comparison.

    Returns:
        Each variant at its best rate; every rate on the shown rows, and on validation rows where these are others;
        suggested rates where there are some; unfinished runs where there are some.
    """
    where = shown_rows(results)
    found = [best_table(results), rates_table(results, where)]
    if where != "validation" and any(run.validation is not None for run in results.runs):
        found.append(rates_table(results, "validation"))
    if any(run.is_auto for run in results.runs):
        found.append(auto_table(results))
    if any(run.status != "done" for run in results.runs):
        found.append(unfinished_table(results))
    return tuple(found)


def score_scale(results: Results) -> Scale:
    """How the comparison's score is written."""
    return Scale(is_share=True, digits=1) if results.is_share else Scale(is_share=False, digits=3)


def score_heading(results: Results) -> str:
    """What the comparison's score is called, with its unit."""
    return f"{results.score} (%)" if results.is_share else results.score


def best_table(results: Results) -> Table:
    """Table 1: each variant and rank at its best learning rate, beside the reference at its own.

    Args:
        results: of the comparison.

    Returns:
        A row for each variant and rank, also where no run is done.
    """
    entries, where = entries_of(results), shown_rows(results)
    pairs = [(entry, reference_of(entry, entries, results.reference)) for entry in entries]
    compared = _compared(pairs, results)
    columns = [
        Column("method", ("variant",), is_number=False),
        Column("rank", ("rank",)),
        Column("trainable parameters", ("trainable_parameters",)),
        Column("best learning rate", ("learning_rate", "learning_rate_is_inside")),
    ]
    if headline(results) == "score":
        columns += [
            Column(score_heading(results), tuple(f"score_{name}" for name in SPREAD)),
            Column(f"Δ {score_heading(results)}", tuple(f"score_{name}" for name in INTERVAL)),
        ]
    columns += [
        Column(f"{where} loss", tuple(f"loss_{name}" for name in SPREAD)),
        Column(f"Δ {where} loss", tuple(f"loss_{name}" for name in INTERVAL)),
        Column("steps to the reference's end", ("steps_to_end", "steps_to_end_reached", "steps_to_end_seeds")),
        Column("range of good rates", ("range_factor", "range_low", "range_high", "range_at_edge")),
        Column("s per step", ("seconds_per_step",)),
        Column("peak memory (GiB)", ("peak_memory_bytes",)),
        Column("seeds", ("seeds", "seeds_planned")),
        Column("not done", ("diverged", "failed", "missing"), is_number=False),
    ]
    rows = tuple(_best_row(each, results) for each in compared)
    title = f"Each method at its best learning rate, {where} rows"
    return Table("best", title, tuple(columns), rows, notes.of_best(results, pairs, compared_clearly(compared)))


def rates_table(results: Results, where: Where) -> Table:
    """Table 2: every variant at every learning rate, by the score, or by the loss where nothing was judged.

    Args:
        results: of the comparison.
        where: the rows.

    Returns:
        A row for each variant and rank, a column for each rate of the grid.
    """
    quantity = headline(results) if where == "test" or results.metric == "none" else results.chosen_by
    scale, what = (score_scale(results), score_heading(results)) if quantity == "score" else (LOSS, "loss")
    entries = entries_of(results)
    rates = sorted({rate for entry in entries for rate in entry.rates})
    columns = (
        Column("method", ("variant",), is_number=False),
        Column("rank", ("rank",)),
        *(Column(rate_text(rate), tuple(f"{name}_at_{rate:g}" for name in SPREAD)) for rate in rates),
    )
    rows = tuple(
        (*_head(entry), *(_rate_cell(entry, rate, quantity, where, scale) for rate in rates)) for entry in entries
    )
    title = f"Every learning rate: {what} on {where} rows"
    return Table(f"rates_{where}", title, columns, rows, notes.of_rates(results, where))


def auto_table(results: Results) -> Table:
    """Table 3: what `learning_rate: auto` suggested, beside the searched best.

    Args:
        results: of the comparison.

    Returns:
        A row for each variant and rank with a run of a suggested rate.
    """
    where = shown_rows(results)
    scale = score_scale(results)
    columns = [
        Column("method", ("variant",), is_number=False),
        Column("rank", ("rank",)),
        Column("suggested rate", ("suggested", "suggested_low", "suggested_high")),
        Column("searched best", ("learning_rate", "learning_rate_is_inside")),
        Column("suggested / best", ("factor",)),
    ]
    if headline(results) == "score":
        columns += [
            Column(f"{score_heading(results)}, suggested", tuple(f"score_{name}" for name in SPREAD)),
            Column(f"Δ {score_heading(results)}", tuple(f"score_{name}" for name in INTERVAL)),
        ]
    columns += [
        Column(f"{where} loss, suggested", tuple(f"loss_{name}" for name in SPREAD)),
        Column(f"Δ {where} loss", tuple(f"loss_{name}" for name in INTERVAL)),
        Column("not done", ("diverged", "failed", "missing"), is_number=False),
    ]
    entries = [entry for entry in entries_of(results) if entry.auto]
    runs = [(done(entry.auto), entry.best) for entry in entries]
    scores, losses = (differences(runs, quantity, where) for quantity in QUANTITIES)
    rows = []
    for entry, score, loss in zip(entries, scores, losses, strict=True):
        gap = auto_gap(entry)
        cells = [
            *_head(entry),
            _suggested_cell(gap.suggested),
            _rate(entry),
            Cell(factor_text(gap.factor), (gap.factor,)),
        ]
        if headline(results) == "score":
            cells += [scale.spread(spread(values(entry.auto, "score", where).values())), scale.difference(score)]
        cells += [LOSS.spread(spread(values(entry.auto, "loss", where).values())), LOSS.difference(loss)]
        rows.append((*cells, _not_done(entry.auto)))
    title = f"learning_rate: auto beside the searched best, {where} rows"
    return Table("auto", title, tuple(columns), tuple(rows), notes.of_auto(results))


def unfinished_table(results: Results) -> Table:
    """The runs that are not done, with the reasons.

    Args:
        results: of the comparison.

    Returns:
        A row for each run that diverged, failed, or is missing.
    """
    columns = (
        Column("method", ("variant",), is_number=False),
        Column("rank", ("rank",)),
        Column("learning rate", ("learning_rate", "is_auto")),
        Column("seed", ("seed",)),
        Column("what became of it", ("status",), is_number=False),
        Column("why", ("problem",), is_number=False),
    )
    rows = tuple(
        (
            Cell(run.variant, (run.variant,)),
            _plain(run.rank, "{}"),
            Cell("auto" if run.is_auto else rate_text(run.learning_rate), (run.learning_rate, run.is_auto)),
            _plain(run.seed, "{}"),
            Cell(run.status, (run.status,)),
            Cell(run.problem or NOTHING, (run.problem,)),
        )
        for run in results.runs
        if run.status != "done"
    )
    explained = (
        "Diverged: the loss was not finite any more, which is a result; failed: the run ended for another reason; "
        "missing: it is not carried out yet."
    )
    return Table("unfinished", "Unfinished runs", columns, rows, (explained,))


@dataclass(frozen=True)
class Compared:
    """An entry, and what its runs at the best rate say beside the reference's; None where that cannot be said."""

    entry: Entry
    score: Difference | None
    loss: Difference | None
    steps: StepsToEnd | None
    range: RateRange | None


def compared_clearly(compared: Sequence[Compared]) -> tuple[int, int]:
    """How many intervals there are, and how many of them leave zero out."""
    intervals = [each for one in compared for each in (one.score, one.loss) if each is not None]
    return len(intervals), sum(each.is_clear for each in intervals)


def _compared(pairs: Sequence[tuple[Entry, Entry | None]], results: Results) -> list[Compared]:
    where = shown_rows(results)
    runs = [(entry.best, () if reference in (None, entry) else reference.best) for entry, reference in pairs]
    scores = differences(runs, "score", where) if headline(results) == "score" else [None] * len(pairs)
    losses = differences(runs, "loss", where)
    return [
        Compared(
            entry,
            score,
            loss,
            None if reference is None else steps_to_end(entry.best, reference.best),
            rate_range(entry, results.chosen_by),
        )
        for (entry, reference), score, loss in zip(pairs, scores, losses, strict=True)
    ]


def _best_row(compared: Compared, results: Results) -> tuple[Cell, ...]:
    entry, where, scale = compared.entry, shown_rows(results), score_scale(results)
    parameters = next((run.trainable_parameters for run in entry.runs if run.trainable_parameters is not None), None)
    cells = [*_head(entry), Cell(count_text(parameters), (parameters,)), _rate(entry)]
    if headline(results) == "score":
        cells += [scale.spread(spread(values(entry.best, "score", where).values())), scale.difference(compared.score)]
    cells += [LOSS.spread(spread(values(entry.best, "loss", where).values())), LOSS.difference(compared.loss)]
    seconds = [each for run in entry.best if (each := run.seconds.get(STEP)) is not None]
    memory = max((run.peak_memory for run in entry.best if run.peak_memory is not None), default=None)
    planned = 0 if entry.best_rate is None else len(entry.at(entry.best_rate))
    finished = len(entry.best)
    return (
        *cells,
        _steps_cell(compared.steps),
        _range_cell(compared.range),
        _plain(statistics.median(seconds) if seconds else None, "{:.3g}"),
        Cell(NOTHING if memory is None else f"{memory / GIB:.2f}", (memory,)),
        Cell(f"{finished}" if finished == planned else f"{finished} of {planned}", (finished, planned)),
        _not_done(entry.runs),
    )


def _head(entry: Entry) -> tuple[Cell, Cell]:
    return Cell(entry.variant, (entry.variant,)), _plain(entry.rank, "{}")


def _rate(entry: Entry) -> Cell:
    mark = "" if entry.is_inside or entry.best_rate is None else EDGE
    return Cell(rate_text(entry.best_rate) + mark, (entry.best_rate, entry.best_rate and entry.is_inside))


def _steps_cell(found: StepsToEnd | None) -> Cell:
    if found is None:
        return Cell(NOTHING, (None, None, None))
    reached, seeds = found.reached, len(found.steps)
    if not reached:
        return Cell(f"not in {found.total}", (None, 0, seeds))
    mean = statistics.fmean(reached)
    of = "" if len(reached) == seeds else f" ({len(reached)} of {seeds} seeds)"
    return Cell(f"{mean:.0f}{of}", (mean, len(reached), seeds))


def _range_cell(found: RateRange | None) -> Cell:
    if found is None:
        return Cell(NOTHING, (None, None, None, None))
    text = f"{factor_text(found.factor)}{EDGE if found.at_edge else ''}"
    return Cell(text, (found.factor, found.low, found.high, found.at_edge))


def _suggested_cell(suggested: tuple[float, ...]) -> Cell:
    if not suggested:
        return Cell(NOTHING, (None, None, None))
    mean, low, high = geometric_mean(suggested), min(suggested), max(suggested)
    between = "" if low == high else f" ({rate_text(low)} to {rate_text(high)})"
    return Cell(rate_text(mean) + between, (mean, low, high))


def _rate_cell(entry: Entry, rate: float, quantity: Quantity, where: Where, scale: Scale) -> Cell:
    runs = entry.at(rate)
    found = spread(values(runs, quantity, where).values())
    fell = Counter(run.status for run in runs if run.status != "done")
    ends = ", ".join(f"{count} {status}" for status, count in fell.items())
    unmeasured = len(done(runs)) - (0 if found is None else found.count)
    if found is None:
        text = ends or ("not measured" if unmeasured else NOTHING)
        return Cell(text, (None, None, 0))
    mark = " ←" if rate == entry.best_rate else ""
    return Cell(
        f"{scale.text(found.mean)} ({found.count}{', ' + ends if ends else ''}){mark}",
        (found.mean, found.std, found.count),
    )


def _not_done(runs: Sequence[Run]) -> Cell:
    counts = Counter(run.status for run in runs)
    kinds: tuple[Status, ...] = ("diverged", "failed", "missing")
    text = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])
    return Cell(text or NOTHING, tuple(counts[kind] for kind in kinds))


def _plain(value: float | None, form: str) -> Cell:
    return Cell(NOTHING if value is None else form.format(value), (value,))
