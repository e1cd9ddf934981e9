"""`loraga export ADAPTER OUTPUT [--rank RANK] [--merge] [--model MODEL]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, add_json, console, folder_to_write, no_more, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    del listed
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="an adapter's folder, or that of a run")
    parser.add_argument("output", type=folder_to_write, metavar="OUTPUT", help="the folder to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, metavar="RANK", help="compress to this rank, and say what it costs")
    which.add_argument("--merge", action="store_true", help="write the base model with the adapter merged into it")
    parser.add_argument("--model", metavar="MODEL", help="the base model; by default the one that the adapter names")
    add_json(parser)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Writes the adapter anew."""
    no_more(words)

    from loraga.lab.export_adapter import export_adapter

    shown_on = console(options)
    written = export_adapter(options.adapter, options.output, options.rank, options.merge, options.model)
    if options.json:
        print_json(written.to_dict())
    else:
        shown_on.print(str(written), highlight=False, markup=False, soft_wrap=True)
    return DONE
