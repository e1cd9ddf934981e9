"""`loraga doctor [ADAPTER]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, FAILED, add_json, console, no_more, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    del listed
    parser.add_argument("adapter", type=Path, nargs="?", metavar="ADAPTER", help="an adapter's folder to look at")
    add_json(parser)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Shows what is found; fails if something is wrong with it."""
    no_more(words)

    from loraga.lab.doctor import diagnose

    found = diagnose(options.adapter)
    if options.json:
        print_json(found.to_dict())
    else:
        for line in found.lines():
            console(options).print(line, highlight=False, markup=False, soft_wrap=True)
    return DONE if found.healthy else FAILED
