"""What has to be said under a table: what its figures are, and what of them cannot be relied on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..curves import WINDOW
from .entries import entries_of, headline, shown_rows
from .statistics import NEAR, rate_range
from .words import CLEAR, EDGE, rate_text, seeds_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .entries import Entry
    from .results import Results

IS_CLEAR = "zero lies outside, and every seed by itself is on the same side"
LISTED = 12  # names; beyond, the table itself has them


def of_best(
    results: Results, pairs: Sequence[tuple[Entry, Entry | None]], intervals: tuple[int, int]
) -> tuple[str, ...]:
    """Under the table of best rates.

    Args:
        results: of the comparison.
        pairs: each entry and what it is compared with.
        intervals: how many there are, and how many leave zero out.

    Returns:
        Sentences; those that do not apply are left out.
    """
    entries = [entry for entry, _ in pairs]
    sentences = [
        _seeds(entries),
        _chosen(results, entries),
        _not_searched(entries),
        _edges(results, entries),
        _difference(results, pairs, intervals),
        _other_rank(pairs),
        _steps(results),
        _range(results),
        _survivors(entries),
    ]
    return (*(sentence for sentence in sentences if sentence), *unfinished(results))


def of_rates(results: Results, where: str) -> tuple[str, ...]:
    """Under a table of all rates.

    Args:
        results: of the comparison.
        where: the rows that it shows.

    Returns:
        Sentences.
    """
    chosen = f"← the best rate, chosen by validation {_measure(results)}"
    other = "" if where == "validation" else ", which need not be the best on these rows"
    sentences = (
        "In brackets: how many seeds the mean is of, and which runs are not in it.",
        f"{chosen}{other}.",
        _unequal_seeds(entries_of(results)),
    )
    return tuple(sentence for sentence in sentences if sentence)


def of_auto(results: Results) -> tuple[str, ...]:
    """Under the table of suggested rates.

    Args:
        results: of the comparison.

    Returns:
        Sentences.
    """
    difference = (
        "Δ is the suggested rate's result minus that of the searched best with the same seed [95 % bootstrap interval "
        f"over {shown_rows(results)} rows]; {CLEAR}: {IS_CLEAR}."
    )
    return (
        "Suggested rate: geometric mean over seeds, with the lowest and the highest.",
        difference,
        "The searched best has the advantage of the search: it is the best of several runs, the suggestion is one.",
    )


def short(results: Results) -> tuple[str, ...]:
    """Under the table on a console: what must not be missed, and where the rest is said.

    Args:
        results: of the comparison.

    Returns:
        Sentences.
    """
    entries = [entry for entry in entries_of(results) if entry.best]
    if not entries:
        return ()
    found = [_seeds(entries), _chosen(results, entries), _not_searched(entries), _edges(results, entries)]
    difference = (
        f"Δ: difference to {results.reference} [95 % interval over {shown_rows(results)} rows, not over seeds]; "
        f"{CLEAR}: {IS_CLEAR}."
    )
    return (*(sentence for sentence in found if sentence), difference)


def reasons(results: Results) -> tuple[str, ...]:
    """Why runs failed or diverged, a line each; of many the first ones."""
    found = [
        f"{run.variant}{'' if run.rank is None else f', rank {run.rank}'}, rate "
        f"{'auto' if run.is_auto else rate_text(run.learning_rate)}, seed {run.seed}: {run.status}"
        + (f" ({run.problem})" if run.problem else "")
        for run in results.runs
        if run.status in ("failed", "diverged")
    ]
    more = (f"and {len(found) - LISTED} more: table of unfinished runs",) if len(found) > LISTED else ()
    return (*found[:LISTED], *more)


def unfinished(results: Results) -> tuple[str, ...]:
    """What is missing in a comparison, a sentence each.

    Args:
        results: of the comparison.

    Returns:
        Entries without a best rate, a reference without one, and how many runs are not done; empty if all is there.
    """
    found = []
    entries = entries_of(results)
    if not entries:
        found.append("No run is there yet.")
    elif not any(entry.variant == results.reference and entry.best for entry in entries):
        found.append(f"{results.reference}, the reference, has no finished run: nothing is compared with it.")
    if without := [entry.name for entry in entries if not entry.best]:
        found.append(f"No finished run at a best learning rate: {_listed(without)}.")
    if results.metric != "none" and headline(results) == "loss" and any(entry.best for entry in entries):
        found.append(f"No answer was judged ({results.metric}): what is compared is the loss alone.")
    by_status = Counter(run.status for run in results.runs if run.status != "done")
    if by_status:
        counts = ", ".join(f"{count} {status}" for status, count in by_status.items())
        found.append(f"Of {len(results.runs)} runs, these are not done: {counts} (table of unfinished runs).")
    return tuple(found)


def _seeds(entries: Iterable[Entry]) -> str:
    counts = sorted({len(entry.best) for entry in entries if entry.best})
    if not counts:
        return ""
    if counts == [1]:
        return "(1 seed): one seed has no standard deviation, and another seed may turn the order around."
    between = seeds_text(counts[0]) if len(counts) == 1 else f"{counts[0]} to {seeds_text(counts[-1])}"
    rough = ": the spread is a rough guess" if counts[0] < 10 else ""
    alone = "; (1 seed) has none" if counts[0] == 1 else ""
    return f"± is the standard deviation over seeds (n - 1){alone}. {between}{rough}."


def _chosen(results: Results, entries: Iterable[Entry]) -> str:
    if all(len(entry.tried) < 2 for entry in entries):
        return ""  # nothing was chosen
    best = "lowest" if results.chosen_by == "loss" else "highest"
    text = f"The best learning rate has the {best} {_measure(results)} on validation rows"
    if shown_rows(results) == "test":
        return f"{text}; test rows had no part in choosing it."
    return f"{text}. No test row was measured: what is shown are the same validation rows, so the best looks too good."


def _unequal_seeds(entries: Iterable[Entry]) -> str:
    """A mean over more seeds than its neighbours', and mostly of other rows, may look worse than the rates it beat."""
    for entry in entries:
        seeds = [{run.seed for run in entry.at(rate)} for rate in entry.rates]
        everywhere = set.intersection(*seeds) if seeds else set()
        if any(each != everywhere for each in seeds):
            names = " and ".join(map(str, sorted(everywhere))) or "none"
            return (
                f"The rate was chosen by the seeds that ran at every rate ({names}); the others ran at the best one "
                "alone, so its mean is not to be compared with its neighbours'."
            )
    return ""


def _measure(results: Results) -> str:
    return "loss" if results.chosen_by == "loss" else results.score


def _not_searched(entries: Iterable[Entry]) -> str:
    single = [entry.name for entry in entries if entry.best and len(entry.tried) == 1]
    if not single:
        return ""
    return (
        f"Learning rate not searched (one rate tried): {_listed(single)}. At a common rate the order says more about "
        "the rate than about the methods."
    )


def _edges(results: Results, entries: Sequence[Entry]) -> str:
    ranges = [(entry, rate_range(entry, results.chosen_by)) for entry in entries]
    outside = [entry.name for entry in entries if entry.best_rate is not None and not entry.is_inside]
    going_on = [entry.name for entry, found in ranges if found is not None and found.at_edge]
    parts = [
        f"a better rate may lie outside for {_listed(outside)}" if outside else "",
        f"the range of good rates may go on for {_listed(going_on)}" if going_on else "",
    ]
    said = "; ".join(part for part in parts if part)
    return f"{EDGE} at the lowest or the highest rate tried: {said}." if said else ""


def _difference(results: Results, pairs: Sequence[tuple[Entry, Entry | None]], intervals: tuple[int, int]) -> str:
    count, clear = intervals
    if not count:
        return ""
    least = min(
        len({run.seed for run in entry.best} & {run.seed for run in reference.best})
        for entry, reference in pairs
        if reference is not None and reference is not entry and entry.best
    )
    unit = "in percentage points, " if results.is_share and headline(results) == "score" else ""
    return (
        f"Δ is the difference to {results.reference} at its own best rate, {unit}with its 95 % bootstrap interval: "
        f"{shown_rows(results)} rows drawn anew, in pairs of one row and one seed ({seeds_text(least)} at least). It "
        f"covers the draw of the rows, not that of the seeds. {CLEAR}: {IS_CLEAR} ({clear} of {count}; by chance alone "
        "up to one in twenty would)."
    )


def _other_rank(pairs: Sequence[tuple[Entry, Entry | None]]) -> str:
    others = [
        f"{entry.name} with {reference.name}"
        for entry, reference in pairs
        if entry.best and reference is not None and reference.rank != entry.rank
    ]
    return f"Compared across ranks: {_listed(others)}." if others else ""


def _steps(results: Results) -> str:
    return (
        f"Steps to the reference's end: training steps until the training loss (mean of {WINDOW} logging steps) is "
        f"down to where that of {results.reference} with the same seed ends; mean over the seeds that get there."
    )


def _range(results: Results) -> str:
    return (
        "Range of good rates: highest over lowest of the neighbouring rates around the best one whose validation "
        f"{_measure(results)} is within {100 * NEAR:g} % (relative) of the best; 1x is the best rate alone."
    )


def _survivors(entries: Iterable[Entry]) -> str:
    found = [entry.name for entry in entries if entry.best_rate and len(entry.best) < len(entry.at(entry.best_rate))]
    return f"Means without the seeds that are not done at the best rate: {_listed(found)}." if found else ""


def _listed(names: Sequence[str]) -> str:
    more = "" if len(names) <= LISTED else f"; and {len(names) - LISTED} more"
    return "; ".join(names[:LISTED]) + more
