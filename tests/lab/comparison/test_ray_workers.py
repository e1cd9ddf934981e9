"""A comparison on a real Ray cluster of this machine, with two workers."""

import os
import signal
from io import StringIO
from pathlib import Path

import pytest
import ray
from rich.console import Console

from loraga.lab.comparison.compare import compare
from loraga.lab.comparison.comparison import load_comparison
from loraga.lab.comparison.ray_workers import RayWorkers
from loraga.lab.errors import LabError, SettingsError
from loraga.lab.progress import WorkProgress
from tests.lab.comparison.running import carried_out, running_in, without_times

WORDS = ("methods=[lora, lora_ga]", "learning_rates=[0.002]", "auto=false", "seeds=[0]", "max_steps=40", "save_steps=5")


@pytest.fixture(autouse=True)
def leave():
    yield
    ray.shutdown()


def test_a_cluster_gives_the_results_of_this_machine_even_if_a_worker_is_lost(place):
    carried_out(*WORDS, "output_dir=here")
    workers = LosesAWorker(None, 1, 0)
    console = Console(file=StringIO(), width=120)
    with WorkProgress(console) as progress:
        compare(load_comparison(Path("two.yaml"), (*WORDS, "output_dir=there")), workers, "typed", console, progress)
    assert workers.lost is not None
    here, there = without_times("here/results.json"), without_times("there/results.json")
    assert there == here


class LosesAWorker(RayWorkers):
    """Kills the process that carries out a cell, once it has written a checkpoint."""

    lost = None

    def wait(self, seconds):
        if self.lost is None and list(Path.cwd().glob("there/cells/*/checkpoint-*")):
            self.lost = running_in(Path.cwd() / "there")[0]
            os.kill(int(self.lost), signal.SIGKILL)
        return super().wait(0.05 if self.lost is None else seconds)


def test_cells_that_ask_for_more_than_the_cluster_has_are_refused():
    with pytest.raises(SettingsError, match=r"has \d+ CPUs and 0 GPUs, and a cell asks for 1 and 1"):
        RayWorkers(None, 1, 1)


def test_a_cluster_that_is_not_there_is_named_at_once():
    with pytest.raises(LabError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 \(Connection refused\)"):
        RayWorkers("127.0.0.1:1", 1, 0)
