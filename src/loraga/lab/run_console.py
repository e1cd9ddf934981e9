"""What a finished run and a finished evaluation say on a console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from .methods import METHODS
from .progress import spoken
from .run_folder import METRICS, PICTURE, folder_of, result_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from .judging.judging import Judged
    from .recipe import Recipe


def show_run(recipe: Recipe, metrics: Mapping[str, Any], console: Console) -> None:
    """Shows what came out of a run, and where it is.

    Args:
        recipe: what was run.
        metrics: the content of metrics.json.
        console: where.
    """
    folder = folder_of(recipe)
    table = Table(title=escape(f"{METHODS[recipe.method].title} of {recipe.model}"))
    cells = {
        "steps": str(metrics["steps"]),
        "peak rate": f"{metrics['learning_rate']:.3g}",
        "training loss": _number(metrics["train_loss"]),
        **({"validation loss": _number(metrics["validation"]["loss"])} if metrics["validation"] else {}),
        **evaluation_cells(metrics["held_out"]),
        "start": spoken(metrics["seconds_start"]),
        "training": spoken(metrics["seconds_training"] or 0.0),
    }
    for heading in cells:
        table.add_column(heading, justify="right")
    table.add_row(*cells.values())
    console.print(table)
    _show_note(metrics["held_out"], console)
    for what, name in {
        "Loss curve": PICTURE,
        "All numbers": METRICS,
        "Result": result_name(recipe),
    }.items():
        console.print(f"{what:12s} {folder / name}", highlight=False, markup=False, soft_wrap=True)


def show_evaluation(title: str, evaluation: Mapping[str, Any], console: Console) -> None:
    """Shows what was measured on held-out rows.

    Args:
        title: of what.
        evaluation: `Evaluation.to_dict()`.
        console: where.
    """
    cells = {"rows": str(evaluation["rows"]), "target tokens": str(evaluation["terms"]), **evaluation_cells(evaluation)}
    table = Table(title=escape(title))
    for heading in cells:
        table.add_column(heading, justify="right")
    table.add_row(*cells.values())
    console.print(table)
    _show_note(evaluation, console)


def show_ratings(judged: Sequence[Judged], console: Console) -> None:
    """Shows how a judge rated answers, over how many questions, and why some have no rating.

    Args:
        judged: a model each.
        console: where.
    """
    for each in judged:
        table = Table(title=escape(f"{each.model}, judged by {each.judge}"))
        cells = {"questions": str(each.questions), "judged": str(len(each.ratings)), "rating": _rating(each.rating)}
        cells |= {escape(category): _rating(value) for category, value in each.by_category.items()}
        for heading in cells:
            table.add_column(heading, justify="right")
        table.add_row(*cells.values())
        console.print(table)
        for question, reason in each.unjudged.items():
            text = f"question {question} has no rating: {reason}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        if each.unjudged:
            console.print("the same command asks for these again", highlight=False)


def _rating(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def evaluation_cells(evaluation: Mapping[str, Any] | None) -> dict[str, str]:
    """Loss and metric of held-out rows, by their headings; nothing if nothing was measured."""
    if evaluation is None:
        return {}
    cells = {} if evaluation["loss"] is None else {"held-out loss": _number(evaluation["loss"])}
    if evaluation["accuracy"] is not None:
        interval = f"{100 * evaluation['low']:.1f} to {100 * evaluation['high']:.1f}"
        cells[f"{evaluation['metric']} (95 %)"] = f"{100 * evaluation['accuracy']:.1f} % ({interval})"
    elif evaluation["score"] is not None:
        cells[evaluation["metric"]] = _number(evaluation["score"])
    return cells | {name: _number(value) for name, value in evaluation["scores"].items()}


def _show_note(evaluation: Mapping[str, Any] | None, console: Console) -> None:
    if evaluation is not None and evaluation.get("note"):
        console.print(evaluation["note"], highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
