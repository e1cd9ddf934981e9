"""`loraga demo [--output FOLDER] [--steps STEPS] [--seed SEED] [--quick]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, add_json, console, folder_to_write, no_more, print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    del listed
    parser.description = (
        "Fine-tunes SmolLM2-135M-Instruct with LoRA and with LoRA-GA on a task that it cannot do, on the CPU and "
        "without a network, and prints a table. Interrupted, the same command goes on where it was."
    )
    parser.add_argument(
        "--output",
        type=folder_to_write,
        default=Path("demo_output"),
        metavar="FOLDER",
        help="where results, pictures and adapters go (default: %(default)s)",
    )
    parser.add_argument("--steps", type=_at_least(1), default=60, help="training steps a run (default: %(default)s)")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of rows and adapters (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few steps; its table says nothing")
    add_json(parser)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Runs and shows the demo."""
    no_more(words)

    from loraga.lab.demo_console import show_demo

    outcome = show_demo(options.output, options.steps, options.seed, options.quick, console(options))
    if options.json:
        print_json({"table": [vars(row) for row in outcome.rows], "picture": str(outcome.picture)})
    return DONE


def _at_least(smallest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{value} is less than {smallest}")
        return value

    return number
