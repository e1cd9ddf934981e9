"""A comparison carried out: the cells that are not done yet, by workers, and what came out, written after each of them.

comparison --planned--> cells --workers--> folders --gather--> results.json --> report
               ^_______________________________|   (search and other seeds follow from what came out)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import SettingsError
from ..interruption import Interrupted, interruptible
from ..run_folder import LOCK, LOG, METRICS, held, read_json, read_lines, write_json
from .cell_run import FAILED, outcome_of
from .cells import Cell, cell_folder, planned
from .gather import gather
from .results import write_results
from .write import write_report

if TYPE_CHECKING:
    from rich.console import Console

    from ..progress import WorkProgress
    from .cells import Plan, Value
    from .comparison import Comparison
    from .results import Results
    from .workers import Workers

OWN = "comparison.json"
SECONDS_BETWEEN_LOOKS = 1.0


def compare(
    comparison: Comparison, workers: Workers, command: str, console: Console, progress: WorkProgress
) -> Results:
    """Carries a comparison out, or what is left of it.

    Args:
        comparison: what is compared.
        workers: what carries the cells out.
        command: what was typed, for the results.
        console: where it says what it does.
        progress: told how far it is, in cells.

    Returns:
        The results, which are in the folder too, with their tables, figures and page.

    Raises:
        SettingsError: if the folder belongs to another comparison, or another process works in it.
        Interrupted: if it was asked to stop; each run that went on has written a checkpoint.
    """
    take_folder(comparison)
    with held(comparison.folder):
        _carry_out(comparison, workers, console, progress)
        return report(comparison, command)


def take_folder(comparison: Comparison) -> None:
    """Makes the comparison's folder, or goes on in it.

    Args:
        comparison: whose it is.

    Raises:
        SettingsError: if it belongs to another comparison, or holds something else.
    """
    folder, values = comparison.folder, comparison.values()
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file, not a folder; name another output_dir")
    if not (folder / OWN).is_file():
        if folder.is_dir() and any(each.name != LOCK for each in folder.iterdir()):
            raise SettingsError(f"{folder} holds something else and no {OWN}; name another output_dir")
        write_json(folder / OWN, values)
        return
    there = read_json(folder / OWN)
    differing = [key for key in {**there, **values} if there.get(key) != values.get(key)]
    if differing:
        said = "; ".join(f"{key} is {there.get(key)} there, {values.get(key)} here" for key in differing)
        raise SettingsError(
            f"{folder} is the folder of another comparison ({said}); remove it, or name another output_dir"
        )


def plan_of(comparison: Comparison) -> Plan:
    """The plan as the comparison's folder stands: which cells there are by now, and the best rates."""

    def value_of(name: str) -> Value:
        return _value(comparison, name)

    def failed(name: str) -> bool:
        outcome = outcome_of(cell_folder(comparison.folder, name))
        return outcome is not None and outcome.status == "failed"

    return planned(comparison, value_of, failed)


def report(comparison: Comparison, command: str) -> Results:
    """Gathers what there is and writes results.json, tables, figures and the page."""
    results = gather(comparison, plan_of(comparison), command)
    write_results(results, comparison.folder)
    write_report(results, comparison.folder)
    return results


def _value(comparison: Comparison, name: str) -> Value:
    """What a cell's rate is chosen by: its validation loss, or its score with the other sign."""
    folder = cell_folder(comparison.folder, name)
    outcome = outcome_of(folder)
    if outcome is None or outcome.status == "failed":
        return None
    if outcome.status == "diverged":
        return math.inf
    metrics = read_json(folder / METRICS)
    validation = metrics["validation"]
    if validation is None:  # one rate, so that nothing is chosen
        return 0.0
    if comparison.grid.choose_by == "loss":
        return float(validation["loss"])
    return -float(validation["score"])


def _carry_out(comparison: Comparison, workers: Workers, console: Console, progress: WorkProgress) -> None:
    """Runs cells until none is left; what failed in an earlier call is tried again."""
    plan, running = plan_of(comparison), dict[str, Cell]()
    for cell in plan.cells:
        outcome = outcome_of(cell.folder)
        if outcome is not None and outcome.status == "failed":
            (cell.folder / FAILED).unlink()
    plan = plan_of(comparison)
    progress.begin("comparing", len(plan.cells), _ended(plan))
    stopping = "stopping: each run ends its step and writes a checkpoint; once more to stop at once"
    with interruptible(lambda: console.print(stopping)) as interruption, interruption.at_a_good_moment():
        try:
            while _start_what_is_free(plan, workers, running) or running:
                if ended := workers.wait(SECONDS_BETWEEN_LOOKS):
                    for cell in ended:
                        del running[cell.name]
                        _tell(cell, console)
                    plan = plan_of(comparison)
                _show(plan, running, progress)
                if interruption.number is not None:
                    workers.stop()
                    said = f"stopped; the same command goes on in {comparison.folder} where it was"
                    raise Interrupted(interruption.number, said)
        finally:
            workers.stop()


def _start_what_is_free(plan: Plan, workers: Workers, running: dict[str, Cell]) -> bool:
    """Starts cells while there is room; whether any was started."""
    waiting = [cell for cell in plan.cells if cell.name not in running and outcome_of(cell.folder) is None]
    starting = waiting[: max(0, workers.free)]
    for cell in starting:
        running[cell.name] = cell
        workers.start(cell)
    return bool(starting)


def _show(plan: Plan, running: dict[str, Cell], progress: WorkProgress) -> None:
    parts = {name: _part(cell) for name, cell in running.items() if outcome_of(cell.folder) is None}
    note = ", ".join(f"{name} {part:.0%}" for name, part in parts.items())
    ended = _ended(plan)
    progress.update(len(plan.cells), ended + sum(parts.values()), f"{ended} of {len(plan.cells)} cells done: {note}")


def _ended(plan: Plan) -> int:
    return sum(outcome_of(cell.folder) is not None for cell in plan.cells)


def _part(cell: Cell) -> float:
    """How much of a run's training is done, from 0 to 1, as far as the recipe tells."""
    log = read_lines(cell.folder / LOG)
    steps = cell.recipe.max_steps
    return min(1.0, log[-1]["step"] / steps) if log and steps else 0.0


def _tell(cell: Cell, console: Console) -> None:
    outcome = outcome_of(cell.folder)
    if outcome is not None:
        said = "done" if outcome.status == "done" else f"{outcome.status}: {outcome.problem}"
        console.print(f"{cell.name}: {said}", highlight=False, markup=False)
