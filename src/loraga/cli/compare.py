"""`loraga compare COMPARISON.yaml [key=value or --key value]`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, FAILED, add_json, console, print_json, report_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from loraga.lab.comparison.comparison import Comparison
    from loraga.lab.comparison.workers import Workers


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    add_json(parser)
    parser.add_argument("comparison", metavar="COMPARISON", help="YAML file of key: value lines (docs/comparing.md)")
    parser.add_argument("--workers", type=_positive, default=1, help="cells at once on this machine (default: 1)")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="what runs the cells")
    parser.add_argument("--address", help="of a running Ray cluster; auto finds this machine's, without it one starts")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a cell, for Ray (default: 0)")
    parser.add_argument("--threads", type=_positive, help="threads of a cell (default: the cores, divided)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, say what it takes, and run nothing; no weights are read",
    )
    parser.add_argument("--list-cells", action="store_true", help="list the cells, with their numbers, and run nothing")
    parser.add_argument(
        "--cell", type=int, metavar="N", help="run the cell of that number alone, as a Slurm array does"
    )
    parser.usage = f"{parser.prog} COMPARISON [options] [key=value or --key value ...]"
    if not listed:
        return
    from loraga.lab.comparison.comparison import grid_keys

    section = parser.add_argument_group("the grid (key=value or --key value), and every key of a recipe")
    for key, what in grid_keys().items():
        section.add_argument(f"--{key.replace('_', '-')}", metavar="VALUE", help=what.replace("%", "%%"))


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Compares, or goes on with a comparison that was interrupted."""
    from loraga.lab.comparison.comparison import load_comparison

    comparison = load_comparison(Path(options.comparison), words)
    shown_on = console(options)
    if options.dry_run:
        return _dry_run(comparison, shown_on, options.json)
    if options.list_cells:
        return _list(comparison, shown_on, options.json)
    if options.cell is not None:
        return _one_cell(comparison, options.cell, options.threads)

    from loraga.lab.comparison.compare import compare
    from loraga.lab.comparison.console import show_results
    from loraga.lab.progress import WorkProgress

    command = shlex.join(["loraga", *sys.argv[1:]])
    _show_what_it_takes(comparison, shown_on)
    with WorkProgress(shown_on) as progress:
        results = compare(comparison, _workers(options), command, shown_on, progress)
    if options.json:
        from loraga.lab.comparison.results import RESULTS
        from loraga.lab.run_folder import read_json

        print_json(read_json(comparison.folder / RESULTS))
    else:
        show_results(results, shown_on)
    return DONE if all(run.status in ("done", "diverged") for run in results.runs) else FAILED


def _workers(options: argparse.Namespace) -> Workers:
    if options.engine == "ray":
        from loraga.lab.comparison.ray_workers import RayWorkers

        return RayWorkers(options.address, options.threads or 1, options.gpus)
    from loraga.lab.comparison.workers import LocalWorkers

    return LocalWorkers(options.workers, options.threads)


def _dry_run(comparison: Comparison, shown_on: Console, as_json: bool) -> int:
    """Checks a comparison and says what it takes."""
    from loraga.lab.comparison.compare import plan_of
    from loraga.lab.comparison.dry_run import dry_run
    from loraga.lab.comparison.dry_run_text import show_dry_run

    found = dry_run(comparison, plan_of(comparison), shown_on)
    if as_json:
        print_json(found.to_dict())
    else:
        show_dry_run(found, shown_on)
    return DONE


def _show_what_it_takes(comparison: Comparison, shown_on: Console) -> None:
    """Checks a comparison that is about to be carried out, and says what is left of it, if anything is."""
    from loraga.lab.comparison.compare import plan_of
    from loraga.lab.comparison.dry_run import dry_run, is_over
    from loraga.lab.comparison.dry_run_text import show_dry_run

    plan = plan_of(comparison)
    if not all(map(is_over, plan.cells)):
        show_dry_run(dry_run(comparison, plan, shown_on), shown_on)


def _list(comparison: Comparison, shown_on: Console, as_json: bool) -> int:
    """Lists the cells that are known by now: those of the grid come first and keep their numbers."""
    from loraga.lab.comparison.cell_run import outcome_of
    from loraga.lab.comparison.compare import plan_of

    rows = []
    for number, cell in enumerate(plan_of(comparison).cells):
        outcome = outcome_of(cell.folder)
        rows.append({"cell": number, "name": cell.name, "status": "to do" if outcome is None else outcome.status})
    if as_json:
        print_json({"cells": rows})
    for row in [] if as_json else rows:
        shown_on.print(f"{row['cell']:4d}  {row['status']:8s}  {row['name']}", highlight=False, markup=False)
    return DONE


def _one_cell(comparison: Comparison, number: int, threads: int | None) -> int:
    """Runs one cell in this process; the results are gathered by a later call without --cell."""
    from loraga.lab.comparison.cell_run import carry_out, outcome_of
    from loraga.lab.comparison.compare import plan_of, take_folder
    from loraga.lab.errors import SettingsError

    cells = plan_of(comparison).cells
    if not 0 <= number < len(cells):
        raise SettingsError(f"there is no cell {number}: they are 0 to {len(cells) - 1} (--list-cells)")
    take_folder(comparison)
    cell = cells[number]
    outcome = outcome_of(cell.folder)
    if outcome is None or outcome.status == "failed":
        carry_out(cell.recipe, threads)
        outcome = outcome_of(cell.folder)
    if outcome is not None and outcome.status == "failed":
        report_error(f"{cell.name}: {outcome.problem}")
        return FAILED
    return DONE


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)
