"""`loraga completion SHELL`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import DONE, no_more

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

SHELLS = ("bash", "zsh", "tcsh")


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    del listed
    parser.add_argument("shell", choices=SHELLS, help='for bash: eval "$(loraga completion bash)"')


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Prints the script."""
    no_more(words)

    import shtab

    from . import parser

    print(shtab.complete(parser("every", listed=True), options.shell))
    return DONE
