"""What the commands share: exit codes, messages, output as JSON, and recipe keys as options."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from loraga.lab.recipe import Recipe

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
WIDTH = 110  # columns, where the output is no terminal


class Parser(argparse.ArgumentParser):
    """argparse's, with wrong use said in one line, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and ends the process."""
        report_error(f"{message}; `{self.prog} --help` shows what there is")
        sys.exit(WRONG_USE)


def report_error(error: object) -> None:
    """Prints what is wrong to stderr, a line for each thing, with no traceback."""
    if isinstance(error, OSError) and error.filename is not None:
        error = f"{error.filename}: {error.strerror}"
    for line in getattr(error, "problems", [str(error)]):
        print(f"loraga: {' '.join(str(line).split())}", file=sys.stderr)


def report_warning(message: Warning | str, *where: object, **more: object) -> None:
    """Prints a warning to stderr, in one line and without the place in the code: `warnings.showwarning`."""
    del where, more
    print(f"loraga: warning: {' '.join(str(message).split())}", file=sys.stderr)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON; progress goes to stderr")


def print_json(content: Mapping[str, Any]) -> None:
    """Prints a result for programs."""
    print(json.dumps(content, indent=2))


def console(options: argparse.Namespace) -> Console:
    """The console for people: stderr where stdout is for programs."""
    from rich.console import Console

    made = Console(stderr=options.json)
    return made if made.is_terminal else Console(stderr=options.json, width=WIDTH)


def add_recipe(parser: argparse.ArgumentParser, *, listed: bool, or_model: bool = False) -> None:
    """Adds RECIPE and, for help and completion, each of its keys as an option.

    With `or_model`, a name that ends in neither .yaml nor .yml is a model's: a recipe of nothing but that model.

    The keys are not parsed as options: recipes are read, changed and checked in one place (`read_recipe`).
    """
    what = "RECIPE|MODEL" if or_model else "RECIPE"
    alone = ", or a model's name" if or_model else ""
    parser.add_argument("recipe", metavar=what, help=f"YAML file of key: value lines (docs/recipes.md){alone}")
    parser.set_defaults(or_model=or_model)
    parser.usage = f"{parser.prog} {what} [options] [key=value or --key value ...]"
    if not listed:
        return
    from loraga.lab.recipe_help import groups

    for group, keys in groups().items():
        section = parser.add_argument_group(f"{group} (key=value or --key value)")
        for key in keys:
            option = f"--{key.name.replace('_', '-')}"
            section.add_argument(option, metavar="VALUE", help=key.help.replace("%", "%%"))


def no_more(words: Sequence[str]) -> None:
    """Refuses words that a command without a recipe does not know."""
    from loraga.lab.errors import SettingsError

    if words:
        raise SettingsError(f"{words[0]!r} is not known here; write --help to see what there is")


def read_recipe(options: argparse.Namespace, words: Sequence[str]) -> Recipe:
    """The recipe file, or the model where the command takes one, with the command line's changes."""
    from loraga.lab.errors import SettingsError
    from loraga.lab.recipe_check import load_recipe, recipe_of_model

    path = Path(options.recipe)
    if getattr(options, "or_model", False) and path.suffix not in (".yaml", ".yml"):
        return recipe_of_model(options.recipe, words)
    if not path.exists() and any(word.endswith((".yaml", ".yml")) for word in words):
        raise SettingsError(f"the recipe comes first, and what changes it after it; {options.recipe} is no file")
    return load_recipe(path, words)


def folder_to_write(text: str) -> Path:
    """Reads the name of a folder to write: there may be one, or nothing, but no file.

    Args:
        text: what stands on the command line.

    Returns:
        Its path.

    Raises:
        ArgumentTypeError: if something else is in the way.
    """
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, not a folder")
    return path


def file_to_write(text: str) -> Path:
    """Reads the name of a file to write.

    Args:
        text: what stands on the command line.

    Returns:
        Its path.

    Raises:
        ArgumentTypeError: if a folder is in the way, or a file where its folder should be.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, not a file")
    if any(parent.is_file() for parent in path.parents):
        raise argparse.ArgumentTypeError(f"{text} is below a file")
    return path
