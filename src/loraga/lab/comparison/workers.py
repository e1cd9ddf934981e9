"""Cells carried out by processes of this machine: each cell in a fresh one, forked from one that imported everything.

A fresh process gives each cell the memory and the random state of its own, and costs milliseconds; importing torch,
transformers and PEFT costs seconds, once.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, Protocol

from .cell_run import carry_out_in_this_process, outcome_of, write_failure

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from .cells import Cell

PRELOADED = ["torch", "transformers", "transformers.trainer", "peft", "accelerate", "loraga.lab.run"]
ATTEMPTS = 2  # of a cell whose process was killed


class Workers(Protocol):
    """What carries cells out, several at once."""

    @property
    def free(self) -> int:
        """How many more cells could start now."""

    def start(self, cell: Cell) -> None:
        """Starts a cell."""

    def wait(self, seconds: float) -> list[Cell]:
        """Waits for cells to end, for so long at most; gives those that did."""

    def stop(self) -> None:
        """Asks all cells to stop with a checkpoint, and waits until they have."""


class LocalWorkers:
    """Processes of this machine.

    Args:
        count: cells at once.
        threads: of each; by default the machine's cores divided among them.
    """

    def __init__(self, count: int, threads: int | None = None) -> None:
        self._count = count
        self._threads = threads or max(1, (os.cpu_count() or 1) // count)
        # Windows has no fork: each process imports anew
        self._context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            self._context.set_forkserver_preload(PRELOADED)
        self._running: dict[str, tuple[Cell, BaseProcess]] = {}
        self._attempts: dict[str, int] = {}

    @property
    def free(self) -> int:
        """How many more cells could start now."""
        return self._count - len(self._running)

    def start(self, cell: Cell) -> None:
        """Starts a cell in a process of its own."""
        process = self._context.Process(target=carry_out_in_this_process, args=(cell.recipe, self._threads))
        process.start()
        self._running[cell.name] = (cell, process)
        self._attempts[cell.name] = self._attempts.get(cell.name, 0) + 1

    def wait(self, seconds: float) -> list[Cell]:
        """Waits for cells to end; one whose process was killed is taken up again from its checkpoint, once."""
        connection.wait([process.sentinel for _, process in self._running.values()], timeout=seconds)
        ended = []
        for name, (cell, process) in list(self._running.items()):
            if process.is_alive():
                continue
            process.join()
            del self._running[name]
            folder = cell.folder
            if outcome_of(folder) is None:
                if self._attempts[name] < ATTEMPTS:
                    self.start(cell)
                    continue
                write_failure(folder, f"its process was ended {self._attempts[name]} times ({_how(process.exitcode)})")
            ended.append(cell)
        return ended

    def stop(self) -> None:
        """Asks all cells to stop after their step, with a checkpoint, and waits until they have."""
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            process.join()
        self._running.clear()


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"by signal {-exit_code}" + (", which is what a machine out of memory sends" if exit_code == -9 else "")
    return f"exit code {exit_code}"
