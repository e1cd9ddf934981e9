"""A run stopped by SIGKILL and continued in a new process ends as one that was never interrupted."""

from __future__ import annotations

import signal

import pytest

from tests.integration.common import STEPS, assert_same, read

MOMENTS = {
    "between checkpoints": ("on_step_end", 5),
    "right after a checkpoint": ("on_save", 4),
    "half of the weights written": ("writing adapter_model.safetensors", 6),
    "half of the optimizer written": ("writing optimizer.pt", 6),
    "half of the trainer state written": ("writing trainer_state.json", 6),
}


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    processes.run("killed", run=output / "run", output=output / "end", event="never", step=0)
    return read(output / "end")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_continues_to_the_same_adapter_bit_for_bit(uninterrupted, processes, tmp_path, moment):
    event, step = MOMENTS[moment]
    run, end = tmp_path / "run", tmp_path / "end"
    assert processes.status("killed", run=run, output=end, event=event, step=step) == -signal.SIGKILL, (
        processes.output()
    )
    assert not end.exists()
    newest_begun = max(path.name for path in run.glob("checkpoint-*"))
    assert newest_begun == ("checkpoint-6" if event.startswith("writing") else "checkpoint-4")
    processes.run("go_on", run=run, output=end)
    assert end.with_suffix(".resumed").read_text() == "checkpoint-4"
    assert_same(read(end), uninterrupted)
    left = {path.name for path in run.iterdir()}
    complete = {"checkpoint-6", f"checkpoint-{STEPS}"}
    assert left == complete | ({"incomplete-checkpoint-6"} if event.startswith("writing") else set())
