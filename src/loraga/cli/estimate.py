"""`loraga estimate RECIPE --output FILE [key=value or --key value]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, add_json, add_recipe, console, file_to_write, print_json, read_recipe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--output",
        type=file_to_write,
        default=Path("gradients.safetensors"),
        metavar="FILE",
        help="default: %(default)s",
    )
    add_json(parser)
    add_recipe(parser, listed=listed)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Estimates and writes."""
    recipe = read_recipe(options, [*words, "gradients=null"])  # they are what is made here

    from loraga.lab.initial import estimate

    shown_on = console(options)
    written = estimate(recipe, options.output, shown_on)
    if options.json:
        print_json(written)
    else:
        shown_on.print(
            f"{written['file']}: {written['layers']} layers from {written['loss_terms']:g} loss terms; for any alpha, "
            f"gamma and rank up to {written['rank']}: gradients={written['file']}",
            highlight=False,
        )
    return DONE
