"""What was run, and how its figures are to be read: the words of the page and of the README."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .entries import entries_of, measured, shown_rows
from .words import rate_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .entries import Where
    from .results import Results

READING = (
    """An interval says how far a difference could be due to which {where} rows happened to be drawn: rows are drawn
    anew in pairs, each row with the results of both methods at the same seed. It does not say how far the difference
    could be due to the seeds: for that, look at the standard deviation over seeds (±).""",
    """An interval that leaves out zero is no proof: with many methods, one in twenty does so by chance, and a
    difference may be clear and yet too small to matter. An interval that holds zero does not show that two methods are
    equal: it shows which differences these rows cannot tell from none.""",
    """Diverged, failed and missing runs are in no mean. Where a method lost seeds at its best rate, its mean is that of
    the seeds that came through, which flatters it.""",
    """Seconds and memory are those of this machine, with whatever else it did: compare them within this page only.""",
)


def facts_of(results: Results) -> dict[str, str]:
    """What was run, by its headings.

    Args:
        results: of the comparison.

    Returns:
        Command, model, task, rows, seeds, learning rates, and how many runs are done.
    """
    runs = results.runs
    rates = sorted({rate for entry in entries_of(results) for rate in entry.rates})
    is_done = sum(run.status == "done" for run in runs)
    return {
        "command": results.command,
        "model": results.model,
        "task": results.task,
        "answers judged by": results.metric if results.metric != "none" else "nothing: the loss alone",
        "methods": ", ".join(results.variants) or "none",
        "reference": results.reference,
        "ranks": _listed(sorted({run.rank for run in runs if run.rank is not None})),
        "seeds": _listed(sorted({run.seed for run in runs})),
        "learning rates": ", ".join(rate_text(rate) for rate in rates) or "none",
        "best rate chosen by": f"{results.score if results.chosen_by == 'score' else 'loss'} on validation rows",
        "validation rows": _rows(results, "validation"),
        "test rows": _rows(results, "test"),
        "training steps": _listed(sorted({run.steps for run in runs if run.steps and run.status == "done"})),
        "runs": f"{is_done} of {len(runs)} done",
    }


def how_to_read(results: Results) -> tuple[str, ...]:
    """What the figures say and what they do not, a sentence or two each.

    Args:
        results: of the comparison.

    Returns:
        Paragraphs.
    """
    return (_about_rates(results), *(" ".join(text.split()).format(where=shown_rows(results)) for text in READING))


def _about_rates(results: Results) -> str:
    entries = [entry for entry in entries_of(results) if entry.best]
    if not entries:
        return "No run at a best learning rate is done, so nothing can be compared yet."
    if all(len(entry.tried) == 1 for entry in entries):
        return (
            "The learning rate was not searched: each method was run at one rate. Such a table says more about which "
            "methods this rate suits than about which is better: with the rate searched for each, LoRA and its "
            "variants have come out within 1 to 2 % of each other (arXiv 2601.22708, 2602.04998)."
        )
    edge = [entry.name for entry in entries if not entry.is_inside]
    text = (
        "Each method is shown at its own best learning rate, searched over the rates of the second table and chosen on "
        "validation rows. A search over more rates gives a method more chances, so mind how many each had."
    )
    if edge:
        text += f" At the edge of the rates tried, where a better one may lie outside: {', '.join(edge)}."
    return text


def _rows(results: Results, where: Where) -> str:
    counts = {found.rows for run in results.runs if (found := measured(run, where)) is not None}
    return _listed(sorted(counts)) if counts else "none measured"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
