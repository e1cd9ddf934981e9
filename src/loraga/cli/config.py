"""`loraga config [RECIPE [key=value]] [--schema | --table | --tasks]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import DONE, add_json, no_more, print_json, read_recipe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    del listed
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="YAML file, shown with every default")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--schema", action="store_true", help="the JSON schema of recipes, for editors")
    which.add_argument("--table", action="store_true", help="every method and key in Markdown: docs/recipes.md")
    which.add_argument("--tasks", action="store_true", help="every task in Markdown: docs/tasks.md")
    add_json(parser)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Shows what was asked for."""
    from loraga.lab.errors import SettingsError
    from loraga.lab.recipe_check import schema
    from loraga.lab.recipe_file import recipe_text, recipe_values
    from loraga.lab.recipe_help import page
    from loraga.lab.tasks.table import table as tasks_table

    if options.recipe is None:
        no_more(words)
        if not (options.schema or options.table or options.tasks):
            raise SettingsError("name a recipe, or give --schema, --table or --tasks")
        if options.schema:
            print_json(schema())
        else:
            print(tasks_table() if options.tasks else page())
        return DONE
    if options.schema or options.table or options.tasks:
        raise SettingsError("--schema, --table and --tasks are of all recipes; leave the recipe away")
    recipe = read_recipe(options, words)
    if options.json:
        print_json(recipe_values(recipe))
    else:
        print(recipe_text(recipe), end="")
    return DONE
