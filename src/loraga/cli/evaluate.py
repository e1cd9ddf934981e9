"""`loraga evaluate RECIPE [--adapter FOLDER | --base] [key=value or --key value]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, add_json, add_recipe, console, file_to_write, print_json, read_recipe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--adapter", type=Path, metavar="FOLDER", help="what to evaluate; by default the run's result")
    which.add_argument("--base", action="store_true", help="evaluate the base model alone")
    parser.add_argument(
        "--output", type=file_to_write, metavar="FILE", help="JSON lines, a row each, gone on with if it is there; "
        "by default evaluation.jsonl in the evaluated folder, or base.jsonl"
    )  # fmt: skip
    add_json(parser)
    add_recipe(parser, listed=listed)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Evaluates, or goes on with an evaluation that was interrupted."""
    recipe = read_recipe(options, words)

    from loraga.lab.evaluate_run import evaluate_recipe
    from loraga.lab.progress import WorkProgress
    from loraga.lab.run_console import show_evaluation

    shown_on = console(options)
    with WorkProgress(shown_on) as progress:
        found = evaluate_recipe(recipe, options.adapter, options.base, options.output, shown_on, progress)
    if options.json:
        print_json(found.to_dict())
    else:
        show_evaluation(found.title, found.evaluation.to_dict(), shown_on)
    return DONE
