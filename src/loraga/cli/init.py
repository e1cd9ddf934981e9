"""`loraga init RECIPE --output FOLDER [key=value or --key value]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import DONE, add_json, add_recipe, console, folder_to_write, print_json, read_recipe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER", help="for the adapter")
    add_json(parser)
    add_recipe(parser, listed=listed)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Writes the untrained adapter."""
    recipe = read_recipe(options, words)

    from loraga.lab.initial import init

    shown_on = console(options)
    written = init(recipe, options.output, shown_on)
    if options.json:
        print_json(written)
    else:
        shown_on.print(
            f"{written['adapter']}: an untrained adapter ({written['method']}) of the original base model; "
            "loraga.load(base, folder, is_trainable=True) goes on from it",
            highlight=False,
        )
    return DONE
