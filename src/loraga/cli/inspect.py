"""`loraga inspect RECIPE.yaml [key=value or --key value]`, or without a file `loraga inspect MODEL --data FILE ...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, add_json, add_recipe, console, folder_to_write, print_json, read_recipe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--output",
        type=folder_to_write,
        metavar="FOLDER",
        help="default: inspections/ and the recipe's name, or the model's",
    )
    parser.add_argument(
        "--layer", metavar="NAME", help="whose gradient is drawn; by default the layer with the largest one"
    )
    parser.add_argument(
        "--estimator",
        choices=("exact", "streaming"),
        default="exact",
        help="exact: all singular values, for 4 bytes of memory a weight; streaming: the first 4 rank ones, for models "
        "that this is too much for (default: %(default)s)",
    )
    add_json(parser)
    add_recipe(parser, listed=listed, or_model=True)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Inspects and writes."""
    recipe = read_recipe(options, [*words, *_as_if_lora_ga()])
    folder = options.output or Path("inspections") / Path(options.recipe).stem

    from loraga.lab.inspection.console import show_inspection
    from loraga.lab.inspection.files import require_free, subject_of, write
    from loraga.lab.inspection.inspection import inspect_recipe
    from loraga.lab.progress import WorkProgress

    require_free(folder, recipe)
    shown_on = console(options)
    try:
        with WorkProgress(shown_on) as progress:
            found = inspect_recipe(recipe, options.layer, options.estimator, shown_on, progress)
        content = write(found, recipe, folder)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"interrupted; {folder} is as it was") from stop
    if options.json:
        print_json(content)
    else:
        show_inspection(found, subject_of(recipe), folder, shown_on)
    return DONE


def _as_if_lora_ga() -> list[str]:
    """A recipe of any method can be inspected: how much of the gradient its rank reaches does not depend on it."""
    from dataclasses import fields

    from loraga.lab.recipe import Recipe, meaningless_keys

    defaults = {each.name: each.default for each in fields(Recipe)}
    others = {key: defaults[key] for key in sorted(meaningless_keys("lora_ga"))}
    return ["method=lora_ga", "gradients=null", *(f"{key}={json.dumps(value)}" for key, value in others.items())]
