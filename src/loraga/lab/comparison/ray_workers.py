"""Cells carried out by a Ray cluster: each is a task that asks for its CPUs and GPUs.

The comparison's folder must be on a disk that every machine of the cluster sees at the same path. A task whose worker
is lost is begun again by Ray, and the cell goes on from its newest checkpoint.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LabError, SettingsError
from .cell_run import carry_out, outcome_of, write_failure

if TYPE_CHECKING:
    from ..recipe import Recipe
    from .cells import Cell

RETRIES = 5  # of a task whose worker was lost
SECONDS_TO_ANSWER = 5.0


class RayWorkers:
    """The workers of a Ray cluster.

    Args:
        address: of a running cluster, "auto" for the one of this machine; None starts one here.
        cpus: of a cell, which are its threads too.
        gpus: of a cell.

    Raises:
        SettingsError: if Ray is not installed, or the cluster has not what a cell asks for.
        LabError: if no cluster answers.
    """

    def __init__(self, address: str | None, cpus: int, gpus: float) -> None:
        self._ray = _ray()
        _require_somebody(address)
        try:
            self._ray.init(address=address or "local", log_to_driver=False, configure_logging=False)
        except Exception as cause:  # Ray raises what its parts do
            raise LabError(f"no Ray cluster answers at {address or 'this machine'}: {_in_one_line(cause)}") from cause
        self._cpus, self._gpus = cpus, gpus
        # a worker process a task: each cell has the memory of its own
        self._task = self._ray.remote(max_calls=1, max_retries=RETRIES, num_cpus=cpus, num_gpus=gpus)(_carry_out)
        self._running: dict[Any, Cell] = {}
        if self._slots() < 1:
            there = {name: self._ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            self.close()
            raise SettingsError(
                f"the Ray cluster has {there['CPU']:g} CPUs and {there['GPU']:g} GPUs, and a cell asks for {cpus} and "
                f"{gpus:g}; ask for less by --threads and --gpus"
            )

    @property
    def free(self) -> int:
        """How many more cells could start now; a cluster may grow meanwhile."""
        return self._slots() - len(self._running)

    def start(self, cell: Cell) -> None:
        """Hands a cell to the cluster."""
        self._running[self._task.remote(cell.recipe, self._cpus, str(Path.cwd()))] = cell

    def wait(self, seconds: float) -> list[Cell]:
        """Waits for cells to end; one that Ray has given up is noted as failed."""
        ended = []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=seconds)
        for task in ready:
            cell = self._running.pop(task)
            try:
                self._ray.get(task)
            except Exception as cause:  # its worker was lost too often
                if outcome_of(cell.folder) is None:
                    write_failure(cell.folder, f"Ray gave it up: {_in_one_line(cause)}")
            ended.append(cell)
        return ended

    def stop(self) -> None:
        """Asks all cells to stop after their step, with a checkpoint, and waits until they have."""
        for task in self._running:
            self._ray.cancel(task, force=False)  # an interrupt, as Ctrl-C gives
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running))
        self._running.clear()

    def close(self) -> None:
        """Leaves the cluster, or ends the one that was started here."""
        self._ray.shutdown()

    def _slots(self) -> int:
        """How many cells the cluster holds at once."""
        there = self._ray.cluster_resources()
        asked = {"CPU": self._cpus, "GPU": self._gpus}
        return int(min(there.get(name, 0) // count for name, count in asked.items() if count))


def _carry_out(recipe: Recipe, threads: int, folder: str) -> None:
    os.chdir(folder)  # a recipe's paths may be relative
    carry_out(recipe, threads)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as cause:
        raise SettingsError("--engine ray needs Ray: pip install 'loraga[ray]'") from cause
    return ray


def _require_somebody(address: str | None) -> None:
    """Refuses HOST:PORT where nobody listens, which Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as cause:
        raise LabError(f"no Ray cluster answers at {address} ({cause.strerror or cause})") from cause


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
