"""Comparisons of tiny models, carried out by real processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loraga.cli import main
from loraga.lab.comparison.cell_run import outcome_of
from loraga.lab.comparison.compare import plan_of, take_folder
from loraga.lab.comparison.comparison import load_comparison
from loraga.lab.comparison.results import read_results
from loraga.lab.comparison.workers import LocalWorkers
from loraga.lab.errors import SettingsError
from tests.lab.comparison.running import carried_out, running_in, steps, wait_until, without_times


def test_every_cell_is_run_once_and_all_of_it_is_in_the_results(place):
    results, said = carried_out()

    assert {run.status for run in results.runs} == {"done"}
    assert len(results.runs) == 2 * (2 + 1) + 2  # the rates and auto at the first seed, the best rate at the other
    assert [best.variant for best in results.best] == ["LoRA", "LoRA-GA, gamma 64"]
    for best in results.best:
        runs = [run for run in results.runs if run.variant == best.variant and run.seed == 0 and not run.is_auto]
        assert best.learning_rate == min(runs, key=lambda run: run.validation.loss).learning_rate
        assert {run.seed for run in results.done(best.variant, 2) if run.learning_rate == best.learning_rate} == {0, 1}
    for run in results.runs:
        assert run.curve.steps == (1, 2, 3, 4, 5, 6)
        assert (run.validation.rows, run.test.rows) == (4, 6)
        assert run.test.score == pytest.approx(sum(run.test.items) / 6)
        loss = sum(loss * terms for loss, terms in zip(run.test.losses, run.test.terms, strict=True))
        assert run.test.loss == pytest.approx(loss / sum(run.test.terms), rel=1e-4)
        assert run.trainable_parameters > 0
        assert run.peak_memory > 0
        assert run.learning_rate > 0
    assert read_results(place / "comparisons" / "two" / "results.json") == results
    assert (place / "comparisons" / "two" / "report.html").is_file()
    assert "8 of 8 cells done" in said
    assert not list((place / "comparisons" / "two" / "cells").glob("*/checkpoint-*"))

    before = {path: path.stat().st_mtime_ns for path in (place / "comparisons" / "two" / "cells").rglob("*")}
    again, _ = carried_out()
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in (place / "comparisons" / "two" / "cells").rglob("*")} == before


def command(*words):
    return [sys.executable, "-m", "loraga.cli", "compare", "two.yaml", "--workers", "2", "--threads", "1", *words]


def test_a_comparison_that_was_stopped_and_killed_goes_on_to_the_same_results(place):
    words = ("methods=[lora, lora_ga]", "max_steps=15", "save_steps=4", "auto=false", "learning_rates=[0.002]")
    carried_out(*words, "output_dir=whole")
    for number, moment in ((signal.SIGINT, 1), (signal.SIGKILL, 9)):  # as the first cell begins; within a cell
        process = subprocess.Popen(command(*words, "output_dir=stopped"), stderr=subprocess.PIPE, text=True)
        wait_until(lambda moment=moment: any(steps(log) >= moment for log in Path("stopped").rglob("log.jsonl")))
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else -9), said
        wait_until(lambda: not running_in(place / "stopped"))  # killed, it leaves cells that notice that nobody waits
    assert any(outcome_of(cell.folder) is None for cell in planned_cells(*words, "output_dir=stopped"))

    subprocess.run(command(*words, "output_dir=stopped"), check=True, capture_output=True)

    stopped, expected = without_times("stopped/results.json"), without_times("whole/results.json")
    assert {**stopped, "command": ""} == {**expected, "command": ""}


def planned_cells(*words):
    return plan_of(load_comparison(Path("two.yaml"), words)).cells


def test_a_cell_that_fails_leaves_the_others_alone_and_it_alone_is_tried_again(place):
    broken = "{method: lora_ga, target_modules: [nothing], title: broken}"
    words = (f"methods=[lora, {broken}]", "auto=false", "learning_rates=[0.002]", "seeds=[0]", "max_steps=2")
    results, said = carried_out(*words)
    assert {run.variant: run.status for run in results.runs} == {"LoRA": "done", "broken": "failed"}
    assert "look at target_modules" in results.runs[1].problem
    assert "broken_r2_lr0.002_seed0: failed: no adapter can be put on the model" in said
    cells = Path("comparisons/two/cells")
    before = {name: (cells / name).read_text() for name in ("broken_r2_lr0.002_seed0.txt", "lora_r2_lr0.002_seed0.txt")}
    carried_out(*words)
    (cells / "broken_r2_lr0.002_seed0" / "failed.json").unlink()
    assert before == {name: (cells / name).read_text()[: len(text)] for name, text in before.items()}
    assert (cells / "lora_r2_lr0.002_seed0.txt").read_text() == before["lora_r2_lr0.002_seed0.txt"]


def test_a_diverged_cell_is_a_result_and_is_not_run_again(place):
    words = ("methods=[full]", "auto=false", "learning_rates=[0.002, 1.0]", "seeds=[0, 1]")
    words = (*words, "weight_decay=100", "warmup_steps=0", "max_steps=40", "save_steps=40")
    results, said = carried_out(*words)
    assert [(run.learning_rate, run.seed, run.status) for run in results.runs] == [
        (0.002, 0, "done"),
        (1.0, 0, "diverged"),
        (0.002, 1, "done"),
    ], said
    assert results.best[0].learning_rate == 0.002
    cell = Path("comparisons/two/cells/full-fine-tuning_lr1_seed0.txt")
    before = cell.read_text()
    assert carried_out(*words)[0] == results
    assert cell.read_text() == before


def test_a_folder_of_another_comparison_is_refused(place):
    load = load_comparison(Path("two.yaml"), ["output_dir=there"])
    Path("there").mkdir()
    Path("there/comparison.json").write_text(json.dumps({**load.values(), "seeds": [7]}))
    with pytest.raises(SettingsError, match=r"another comparison \(seeds is \[7\] there, \[0, 1\] here\)"):
        carried_out("output_dir=there")
    Path("other").mkdir()
    Path("other/file").write_text("something")
    with pytest.raises(SettingsError, match=r"holds something else and no comparison\.json"):
        carried_out("output_dir=other")


def test_cells_are_listed_and_run_one_by_one_as_a_slurm_array_does(place, capsys):
    words = ("methods=[lora]", "auto=false", "seeds=[0]", "max_steps=2")
    assert main(["compare", "two.yaml", "--list-cells", "--json", *words]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["cell"], cell["status"]) for cell in cells] == [(0, "to do"), (1, "to do")]
    assert main(["compare", "two.yaml", "--cell", "1", *words]) == 0
    assert main(["compare", "two.yaml", "--list-cells", "--json", *words]) == 0
    assert [cell["status"] for cell in json.loads(capsys.readouterr().out)["cells"]] == ["to do", "done"]
    assert main(["compare", "two.yaml", "--cell", "2", *words]) == 2
    assert "there is no cell 2: they are 0 to 1 (--list-cells)" in capsys.readouterr().err


def test_a_process_that_is_killed_twice_is_noted_as_failed(place):
    (cell,) = planned_cells("methods=[lora]", "learning_rates=[0.002]", "auto=false", "max_steps=5000", "seeds=[0]")
    workers = LocalWorkers(1, 1)
    workers.start(cell)
    ended = []
    while not ended:
        for process in running_in(place):
            os.kill(int(process), signal.SIGKILL)
        ended = workers.wait(0.1)
    assert ended == [cell]
    assert outcome_of(cell.folder).status == "failed"
    assert outcome_of(cell.folder).problem.startswith("its process was ended 2 times (by signal 9, which is what")


def test_a_cell_waits_for_the_process_of_a_killed_call_that_still_writes_its_checkpoint(place):
    words = ("methods=[lora]", "learning_rates=[0.002]", "auto=false", "max_steps=2", "seeds=[0]")
    take_folder(load_comparison(Path("two.yaml"), words))
    (cell,) = planned_cells(*words)
    cell.folder.mkdir(parents=True)
    started = cell.folder.with_name(f"{cell.name}.txt")  # what the new process says
    holds = f"""
import pathlib, time, filelock
with filelock.FileLock({str(cell.folder / ".lock")!r}):
    print("held", flush=True)
    while not pathlib.Path({str(started)!r}).exists():
        time.sleep(0.05)
    time.sleep(3)
"""
    with subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE) as former:
        former.stdout.readline()
        results, said = carried_out(*words)
        assert former.wait() == 0
    assert [run.status for run in results.runs] == ["done"], said
