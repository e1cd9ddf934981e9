"""From the folders of cells to Results: nothing is computed again, whatever is there is read."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from ..doctor import versions
from ..metrics import METRICS
from ..recipe_file import recipe_values
from ..run_folder import EVALUATION, RATE, TRAINED, VALIDATION, RunFolder, read_lines
from ..run_folder import METRICS as METRICS_FILE
from ..tasks import TASKS
from .cell_run import outcome_of
from .results import Curve, Measured, Results, Run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .cells import Cell, Plan
    from .comparison import Comparison

DIGITS = 6  # of what is kept of a row


def gather(comparison: Comparison, plan: Plan, command: str) -> Results:
    """Reads what the cells have left.

    Args:
        comparison: what is compared.
        plan: its cells and the best rates.
        command: what was typed.

    Returns:
        All of it; a cell that has not ended is "missing".
    """
    first = plan.cells[0].recipe
    metric = METRICS[first.metric]
    return Results(
        title=comparison.grid.title or comparison.name,
        model=first.model,
        task=first.data if first.task is None else TASKS[first.task].title,
        metric=first.metric,
        score=metric.score_name,
        is_share=metric.is_share,
        chosen_by=comparison.grid.choose_by,
        reference=comparison.reference,
        command=command,
        comparison=comparison.values(),
        versions={name: str(row["version"]) for name, row in versions().items() if row["version"]},
        machine=machine(),
        runs=tuple(run_of(cell) for cell in plan.cells),
        best=plan.best,
    )


def machine() -> dict[str, Any]:
    """What the runs ran on, in words."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "CPU",
    }


def run_of(cell: Cell) -> Run:
    """Reads one cell's folder."""
    folder, outcome = RunFolder(cell.folder), outcome_of(cell.folder)
    facts: dict[str, Any] = {}
    if outcome is not None and outcome.status == "done":
        facts = _facts_of(folder)
    rate = cell.learning_rate
    if rate is None and (folder / RATE).is_file():
        rate = folder.read_json(RATE)["value"]
    if (folder / TRAINED).is_file() and cell.learning_rate is None:
        rate = folder.read_json(TRAINED)["learning_rate"]
    return Run(
        variant=cell.variant.title,
        method=cell.variant.method,
        rank=cell.rank,
        learning_rate=rate,
        is_auto=cell.learning_rate is None,
        seed=cell.seed,
        status="missing" if outcome is None else outcome.status,
        problem=None if outcome is None else outcome.problem,
        curve=_curve(folder),
        settings={key: value for key, value in recipe_values(cell.recipe).items() if key != "output_dir"},
        **facts,
    )


def _facts_of(folder: RunFolder) -> dict[str, Any]:
    metrics = folder.read_json(METRICS_FILE)
    return {
        "trainable_parameters": metrics["trainable_parameters"],
        "steps": metrics["steps"],
        "tokens": metrics["tokens"],
        "train_loss": metrics["train_loss"],
        "validation": read_measured(metrics["validation"], folder / VALIDATION),
        "test": read_measured(metrics["held_out"], folder / EVALUATION),
        "seconds": {
            "start": metrics["seconds_start"],
            "training": metrics["seconds_training"],
            "a step": metrics["seconds_per_step"],
        },
        "peak_memory": metrics["peak_memory"],
    }


def read_measured(evaluation: Mapping[str, Any] | None, file: Path) -> Measured | None:
    """What an evaluation found, with the figures of its rows.

    Args:
        evaluation: as metrics.json has it; None if nothing was evaluated.
        file: its lines.

    Returns:
        The same as data. Rows without a target have no losses; if one has no score, since a judge has not rated it,
        there are no scores row by row, because those of two runs would not be of the same rows.
    """
    if evaluation is None:
        return None
    lines = read_lines(file)[1:]
    scores = [round(line["score"], DIGITS) for line in lines if line.get("score") is not None]
    with_target = [line for line in lines if line["terms"]]
    return Measured(
        rows=evaluation["rows"],
        loss=evaluation["loss"],
        score=evaluation["score"],
        scores=evaluation["scores"],
        items=tuple(scores) if len(scores) == len(lines) else (),
        losses=tuple(round(line["loss"], DIGITS) for line in with_target),
        terms=tuple(line["terms"] for line in with_target),
    )


def _curve(folder: RunFolder) -> Curve | None:
    logged = [line for line in folder.training_log() if line["loss"] is not None]
    if not logged:
        return None
    return Curve(tuple(line["step"] for line in logged), tuple(line["loss"] for line in logged))
