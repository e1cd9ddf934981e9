"""`loraga init RECIPE --output FOLDER [--residual [--allow-rounding]] [key=value or --key value]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .common import DONE, add_json, add_recipe, console, folder_to_write, print_json, read_recipe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER", help="for the adapter")
    parser.add_argument(
        "--residual",
        action="store_true",
        help="for tools that know only plain PEFT: write the base model with the start subtracted, and the adapter for "
        "it in FOLDER/adapter (method=mirrored needs no other base model; docs/other-tools.md)",
    )
    parser.add_argument(
        "--allow-rounding", action="store_true", help="with --residual, accept what half precision rounds away"
    )
    add_json(parser)
    add_recipe(parser, listed=listed)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Writes the untrained adapter."""
    from loraga.lab.errors import SettingsError

    if options.allow_rounding and not options.residual:
        raise SettingsError("--allow-rounding means nothing without --residual; remove it")
    recipe = read_recipe(options, words)

    from loraga.lab.initial import init

    shown_on = console(options)
    written = init(recipe, options.output, shown_on, residual=options.residual, allow_rounding=options.allow_rounding)
    if options.json:
        print_json(written)
    else:
        shown_on.print(_sentence(written), highlight=False, markup=False, soft_wrap=True)
    return DONE


def _sentence(written: Mapping[str, Any]) -> str:
    """What was written, and what trains it."""
    adapter, method = written["adapter"], written["method"]
    if "base" in written:
        return (
            f"{written['base']}: the base model with its start subtracted, of which rounding lost "
            f"{written['rounding']:.2g}; {adapter}: the untrained adapter ({method}) for it, for any tool that loads a "
            "PEFT adapter to train it"
        )
    if method == "mirrored":
        return (
            f"{adapter}: an untrained adapter (mirrored) of the original base model, for any tool that loads a PEFT "
            "adapter to train it; take half of LoRA-GA's learning rate"
        )
    return (
        f"{adapter}: an untrained adapter ({method}) of the original base model; "
        "loraga.load(base, folder, is_trainable=True) goes on from it"
    )
