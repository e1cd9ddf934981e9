"""The command line. It parses, calls the library or the lab, and prints; it computes nothing.

Each command is one module here: `configure(parser)` and `run(options, words) -> exit code`, where the words are what
argparse did not know, such as key=value. Only the command that was asked for is imported: its help is there at once.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from typing import TYPE_CHECKING

from loraga._version import __version__
from loraga.errors import LoragaError

from .common import FAILED, INTERRUPTED, WRONG_USE, Parser, report_error, report_warning

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

COMMANDS = {
    "demo": "fine-tune a small language model with LoRA and with LoRA-GA, and compare",
    "train": "carry out a recipe: from data and a base model to a trained adapter",
    "evaluate": "measure loss and a metric on held-out rows",
    "compare": "compare methods, learning rates, ranks and seeds on a task: a table, figures and a page",
    "judge": "have another model rate the answers that a run left for it (MT-Bench)",
    "estimate": "estimate the gradient of a recipe's data, and write it to a file",
    "inspect": "show, before any training, how much of the gradient an adapter's rank reaches, layer by layer",
    "init": "write an adapter with its start, untrained, for this or another tool to train",
    "export": "write an adapter anew: as a plain LoRA, at another rank, or merged into its base model",
    "doctor": "show versions and devices, and what an adapter directory is",
    "config": "show a recipe with every key, the JSON schema of recipes, or a table of their keys",
    "completion": "print the completion script of a shell",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after `loraga`; by default those the process was started with.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong use, 128 + the signal's number if interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        meant = difflib.get_close_matches(name, COMMANDS, n=1)
        report_error(
            f"there is no command {name}" + (f"; did you mean {meant[0]}?" if meant else "; see `loraga --help`")
        )
        return WRONG_USE
    wants_help = "-h" in words or "--help" in words
    options, rest = parser(name, listed=wants_help).parse_known_args(words)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = report_warning
            return importlib.import_module(f"{__name__}.{options.command}").run(options, rest)
    except (LoragaError, OSError) as error:
        report_error(error)
        return WRONG_USE if getattr(error, "wrong_use", False) else FAILED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "loraga":
            raise
        report_error(f"the package {error.name} is missing: pip install 'loraga[lab]'")
        return FAILED
    except KeyboardInterrupt as interrupt:
        report_error(str(interrupt) or "interrupted; the same command goes on after the last finished part")
        return getattr(interrupt, "exit_code", INTERRUPTED)


def parser(configured: str | None, *, listed: bool) -> argparse.ArgumentParser:
    """The parser, with the arguments of one command, or of every one.

    Args:
        configured: a command's name, "every", or None for none of them.
        listed: declare each key of a recipe as an option, for help and completion.

    Returns:
        A parser that sets `command`.
    """
    made = Parser(prog="loraga", description="LoRA adapters that start along the full gradient.", allow_abbrev=False)
    made.add_argument("--version", action="version", version=f"loraga {__version__}")
    commands = made.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False)
        if configured in (name, "every"):
            importlib.import_module(f"{__name__}.{name}").configure(command, listed=listed)
    return made
