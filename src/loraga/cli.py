"""The command line. It parses, calls the library or the lab, and prints; it computes nothing.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._version import __version__
from .errors import LoragaError

if TYPE_CHECKING:
    from collections.abc import Sequence

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after `loraga`; by default those the process was started with.

    Returns:
        The exit code.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.command(options)
    except (LoragaError, OSError) as error:
        print(f"loraga: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_USE if getattr(error, "wrong_use", False) else FAILED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "loraga":
            raise
        print(f"loraga: the package {error.name} is missing: pip install 'loraga[lab]'", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("loraga: interrupted; the same command goes on after the last finished part", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loraga", description="LoRA adapters that start along the full gradient.")
    parser.add_argument("--version", action="version", version=f"loraga {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="fine-tune a small language model with LoRA and with LoRA-GA, and compare",
        description="Fine-tunes SmolLM2-135M-Instruct with LoRA and with LoRA-GA on a task that it cannot do, on the "
        "CPU and without a network, and prints a table. Interrupted, the same command goes on where it was.",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("demo_output"),
        metavar="FOLDER",
        help="where results, pictures and adapters go (default: %(default)s)",
    )
    demo.add_argument("--steps", type=_at_least(1), default=60, help="training steps a run (default: %(default)s)")
    demo.add_argument("--seed", type=_at_least(0), default=0, help="of items and adapters (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="a smoke run of a few steps; its table says nothing")
    demo.set_defaults(command=_demo)


def _at_least(smallest: int) -> argparse._ActionType:
    def number(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{value} is less than {smallest}")
        return value

    return number


def _demo(options: argparse.Namespace) -> int:
    from .lab import demo_console

    demo_console.run(options.output, steps=options.steps, seed=options.seed, quick_run=options.quick)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
