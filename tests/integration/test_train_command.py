"""`loraga train`, stopped at many moments and continued by the same command: as if never stopped."""

from __future__ import annotations

import json
import math
import signal

import pytest
from safetensors.torch import load_file

from tests.cli.workplace import build
from tests.integration.common import assert_same

STEPS = 8
RECIPE = f"""\
model: tiny
data: rows.jsonl
held_out_rows: 4
prompt: question
target: answer
template: none
rank: 2
alpha: 32
dropout: 0.1
gamma: 64
learning_rate: auto
warmup_steps: 3
max_steps: {STEPS}
per_device_train_batch_size: 2
gradient_batches: 2
save_steps: 2
metric: exact_match
max_new_tokens: 3
per_device_eval_batch_size: 2
"""
KILLED = {
    "while the start is written": ("writing adapter_model.safetensors", 0),
    "before the first checkpoint": ("on_step_end", 1),
    "at the end of the warm-up": ("on_step_end", 3),
    "between checkpoints": ("on_step_end", 5),
    "right after a checkpoint": ("on_save", 4),
    "half of the weights written": ("writing adapter_model.safetensors", 6),
    "half of the optimizer written": ("writing optimizer.pt", 6),
    "in the evaluation": ("evaluation", 0),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    build(folder)
    (folder / "train.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def train(processes, place, tmp_path):
    """Runs the command in a fresh process: its exit status, and what it said if it ended by itself."""

    def run(name, event="never", step=0, words=()):
        output = tmp_path / "said.json"
        output.unlink(missing_ok=True)
        words = ["train", "train.yaml", f"output_dir=runs/{name}", *words]
        status = processes.status("command", words=words, folder=place, output=output, event=event, step=step)
        return status, json.loads(output.read_text()) if output.exists() else None

    return run


@pytest.fixture
def uninterrupted(train, place):
    if not (place / "runs" / "whole" / "metrics.json").exists():
        status, said = train("whole")
        assert (status, said["code"]) == (0, 0), said
    return place / "runs" / "whole"


def same_results(one, other):
    assert_same(
        load_file(one / "adapter" / "adapter_model.safetensors"),
        load_file(other / "adapter" / "adapter_model.safetensors"),
    )
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, other)]
    for kept in ("step", "loss", "learning_rate", "tokens"):
        assert [line[kept] for line in logs[0]] == [line[kept] for line in logs[1]], kept
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    for kept in ("method", "learning_rate", "steps", "train_loss", "held_out", "tokens"):
        assert metrics[0][kept] == metrics[1][kept]
    # its first line holds the checksum of adapter_config.json, where PEFT writes a set in the order of the process
    rows = [(run / "evaluation.jsonl").read_text().splitlines()[1:] for run in (one, other)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_command_run_again_ends_with_the_same_adapter_bit_for_bit(
    uninterrupted, train, place, processes, moment
):
    name = moment.replace(" ", "_")
    status, _ = train(name, *KILLED[moment])
    assert status == -signal.SIGKILL, processes.output()
    assert not (place / "runs" / name / "metrics.json").exists()

    status, said = train(name)

    assert (status, said["code"]) == (0, 0), said
    same_results(place / "runs" / name, uninterrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_last_line_says_how_to_go_on(
    uninterrupted, train, place, number, code
):
    name = f"signal{int(number)}"
    status, said = train(name, f"signal {int(number)}", 5)

    assert (status, said["code"]) == (0, code), said
    assert said["stderr"].splitlines()[-1] == (
        f"loraga: stopped after step 5, with a checkpoint in runs/{name}; the same command goes on from there"
    )
    assert (place / "runs" / name / "checkpoint-5" / "trainer_state.json").exists()
    assert (place / "runs" / name / "loss.png").exists()

    status, said = train(name)

    assert (status, said["code"]) == (0, 0), said
    same_results(place / "runs" / name, uninterrupted)


@pytest.mark.parametrize(
    ("what", "bytes_a_file", "words", "message"),
    [
        ("the start", 15_000, (), "File too large"),
        ("a picture", 30_000, (), "File too large"),
        ("a checkpoint's optimizer", 30_000, ("learning_rate=0.01",), "cannot be written"),
    ],
)
def test_a_full_disk_is_one_line_and_nothing_is_lost(train, place, what, bytes_a_file, words, message):
    name = f"full {what}".replace(" ", "_")
    status, said = train(name, "full disk", bytes_a_file, words)

    assert (status, said["code"]) == (0, 1), said
    [line] = said["stderr"].splitlines()
    assert line.startswith("loraga: ")
    assert message in line
    runs = [place / "runs" / each for each in (name, f"{name}_whole")]
    assert (runs[0] / "checkpoint-2").exists() == bool(words)

    for run in runs:
        status, said = train(run.name, words=words)
        assert (status, said["code"]) == (0, 0), said
    same_results(*runs)


def test_a_finished_run_is_not_done_again(uninterrupted, train):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}

    status, said = train("whole")

    assert (status, said["code"]) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()} == before


def test_the_folder_of_another_recipe_is_refused_by_the_key_that_differs(uninterrupted, train):
    status, said = train("whole", words=["rank=4"])

    assert (status, said["code"]) == (0, 2)
    assert said["stderr"] == (
        "loraga: runs/whole is the folder of another run (rank is 2 there, 4 here); "
        "remove it, or name another output_dir\n"
    )


def test_auto_writes_the_rate_its_curve_and_the_second_measurement(uninterrupted):
    rate = json.loads((uninterrupted / "learning_rate.json").read_text())

    assert rate["value"] > 0
    assert len(rate["curve"]) >= 3
    assert rate["after_warm_up"]["step"] == 3
    assert (uninterrupted / "learning_rate.png").stat().st_size > 1000
    peak = json.loads((uninterrupted / "metrics.json").read_text())["learning_rate"]
    first, second = rate["value"], rate["after_warm_up"]["value"]
    assert peak == pytest.approx(math.sqrt(first * min(first, second)))
