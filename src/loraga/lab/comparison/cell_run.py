"""One cell carried out, in a process of its own, and what is left of it in its folder.

cells/NAME/metrics.json    the run is done
cells/NAME/failed.json     it is not, and why: it diverged, which is a result, or it failed, and will be tried again
cells/NAME.txt             what it said
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from typing import TYPE_CHECKING, Literal

from loraga.errors import LoragaError

from ..errors import DivergedError
from ..run_folder import FULL_RESULT, LOCK, METRICS, START, RunFolder, folder_of, read_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from ..recipe import Recipe

FAILED = "failed.json"
WIDTH = 120  # columns of what it said
SECONDS_TO_STOP = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: done, diverged or failed, and why."""

    status: Literal["done", "diverged", "failed"]
    problem: str | None = None


def outcome_of(folder: Path) -> Outcome | None:
    """How the cell in a folder ended.

    Args:
        folder: the cell's; it need not be there.

    Returns:
        The outcome; None if it has not ended.
    """
    if (folder / METRICS).is_file():
        return Outcome("done")
    if (folder / FAILED).is_file():
        return Outcome(**read_json(folder / FAILED))
    return None


def write_failure(folder: Path, problem: str, *, diverged: bool = False) -> None:
    """Notes that a cell has ended without its result.

    Args:
        folder: the cell's.
        problem: why, in a line.
        diverged: whether its loss was not finite, which is a result.
    """
    write_json(folder / FAILED, {"status": "diverged" if diverged else "failed", "problem": problem})


def carry_out(recipe: Recipe, threads: int | None) -> None:
    """Runs a cell, or goes on with it; an error is noted in its folder and not raised.

    Args:
        recipe: the cell's.
        threads: of this process; None leaves them as they are.

    Raises:
        Interrupted: if it was asked to stop; a checkpoint is written.
    """
    from rich.console import Console

    from ..progress import WorkProgress
    from ..run import run

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    folder = folder_of(recipe)
    (folder / FAILED).unlink(missing_ok=True)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    said_to = folder.path.with_name(f"{folder.path.name}.txt")  # a run wants to find its folder empty
    with said_to.open("a", encoding="utf-8") as stream:
        console = Console(file=stream, width=WIDTH)
        _wait_for_who_stops(folder)
        try:
            with WorkProgress(console) as progress:
                run(recipe, console, progress)
        except DivergedError as error:
            write_failure(folder.path, _in_one_line(error), diverged=True)
        except (LoragaError, OSError) as error:
            write_failure(folder.path, _in_one_line(error))
        except Exception as error:  # one cell's fault is not to end the others
            traceback.print_exc(file=stream)
            write_failure(folder.path, f"{_in_one_line(error)} ({said_to} has more)")
        else:
            _remove_what_is_large(folder)


def carry_out_in_this_process(recipe: Recipe, threads: int | None) -> None:
    """`carry_out` as the whole work of a forked process, which stops with a checkpoint when its parent is gone.

    Args:
        recipe: the cell's.
        threads: of this process.
    """
    os.setpgrp()  # Ctrl-C goes to the parent alone, which passes it on once
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    carry_out(recipe, threads)


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_who_stops(folder: RunFolder) -> None:
    """Waits for the process of a call that was killed: it ends its step and writes a checkpoint before it goes."""
    from filelock import FileLock, Timeout

    if (folder / LOCK).is_file():
        with suppress(Timeout), FileLock(folder / LOCK, timeout=SECONDS_TO_STOP):
            pass


def _remove_what_is_large(folder: RunFolder) -> None:
    """Removes checkpoints, the start and a whole model: of a finished cell only its numbers and its adapter count."""
    for each in (*folder.path.glob("checkpoint-*"), folder / FULL_RESULT, folder / START):
        shutil.rmtree(each, ignore_errors=True)


def _in_one_line(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return said if isinstance(error, LoragaError) else f"{type(error).__name__}: {said}"
