"""Comparisons of tiny models, carried out by real processes, and what can be seen of them from outside."""

from __future__ import annotations

import json
import time
from io import StringIO
from pathlib import Path

from rich.console import Console

from loraga.lab.comparison.compare import compare
from loraga.lab.comparison.comparison import load_comparison
from loraga.lab.comparison.workers import LocalWorkers
from loraga.lab.progress import WorkProgress

RECIPE = """
methods: [lora, {method: lora_ga, gamma: 64}]
learning_rates: [0.002, 0.02]
seeds: [0, 1]
auto: true
title: two methods
model: base
data: rows.jsonl
held_out: test.jsonl
prompt: prompt
target: target
template: none
ranks: [2]
gradient_batches: 2
validation_rows: 4
metric: exact_match
max_new_tokens: 4
max_steps: 6
save_steps: 2
per_device_train_batch_size: 4
"""


def carried_out(*words, workers=2):
    console = Console(file=StringIO(), width=120)
    with WorkProgress(console) as progress:
        results = compare(
            load_comparison(Path("two.yaml"), words), LocalWorkers(workers, 1), "typed", console, progress
        )
    return results, console.file.getvalue()


def without_times(file):
    """The content of a results.json, but for what is measured by a clock or a process's memory."""
    content = json.loads(Path(file).read_text())
    for run in content["runs"]:
        run["seconds"], run["peak_memory"] = None, None
    return content


def steps(log):
    return sum(line.endswith("}") for line in log.read_text().splitlines())


def wait_until(holds, seconds=90):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def running_in(folder):
    """Processes that hold the lock of a cell in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            open_files = [str(each.readlink()) for each in (process / "fd").iterdir()]
        except OSError:
            continue
        found += [process.name for each in open_files if each.startswith(str(folder)) and each.endswith(".lock")]
    return found
