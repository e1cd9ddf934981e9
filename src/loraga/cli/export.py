"""`loraga export ADAPTER OUTPUT [--rank RANK | --merge] [--initial FOLDER] [--changed-base FOLDER] [--model MODEL]`."""

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
    changed = parser.add_argument_group(
        "adapters whose start was subtracted from their base",
        "PEFT's lora_ga, the authors' LoRA-GA, PiSSA, OLoRA, CorDA: either makes a plain LoRA of one",
    )
    changed.add_argument("--initial", type=Path, metavar="FOLDER", help="the adapter as saved before training")
    changed.add_argument("--changed-base", type=Path, metavar="FOLDER", help="the base model that it was trained on")
    parser.add_argument(
        "--model", metavar="MODEL", help="the original base model; by default the one that the adapter names"
    )
    add_json(parser)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Writes the adapter anew."""
    no_more(words)

    from loraga.lab.export_adapter import export_adapter

    shown_on = console(options)
    written = export_adapter(
        options.adapter,
        options.output,
        options.rank,
        options.merge,
        options.model,
        options.initial,
        options.changed_base,
    )
    if options.json:
        print_json(written.to_dict())
    else:
        shown_on.print(str(written), highlight=False, markup=False, soft_wrap=True)
    return DONE
