"""Two processes that save different adapters into the same directory at the same time."""

from __future__ import annotations


def test_a_directory_that_two_processes_save_into_at_once_is_whole_and_loads(processes, tmp_path):
    processes.run("save_at_once", directory=tmp_path / "adapter", rounds=16)
