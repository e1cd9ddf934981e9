"""`loraga train RECIPE.yaml [key=value or --key value]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import DONE, add_json, add_recipe, console, print_json, read_recipe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    add_json(parser)
    add_recipe(parser, listed=listed)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Trains, or goes on with a run that was interrupted."""
    recipe = read_recipe(options, words)

    from loraga.lab.progress import WorkProgress
    from loraga.lab.run import run as carry_out
    from loraga.lab.run_console import show_run

    shown_on = console(options)
    with WorkProgress(shown_on) as progress:
        metrics = carry_out(recipe, shown_on, progress)
    if options.json:
        print_json(metrics)
    else:
        show_run(recipe, metrics, shown_on)
    return DONE
