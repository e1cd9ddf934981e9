import json
from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel

from loraga.lab import demo as demo_module
from loraga.lab.curves import final_loss, steps_until
from loraga.lab.demo import Demo, demo_recipe
from loraga.lab.errors import SettingsError
from loraga.lab.rates import Rates
from loraga.lab.recipe_file import recipe_values
from loraga.lab.rows import read_rows

from .conftest import tiny_model, use_tiny_model

RATES = Rates(best={"lora": 0.02, "lora_ga": 0.01}, common=0.01)


class Killed(BaseException):
    pass


class Counted:
    """Counts the work that a demo tells of."""

    def __init__(self):
        self.done = 0.0

    def skip(self, work, note):
        self.done += work

    def advance(self, work, note):
        self.done += work


def recipe(folder):
    small = replace(demo_recipe(folder, steps=3, quick=True), rank=4, gamma=64.0, per_device_eval_batch_size=4)
    return replace(small, held_out_rows=6, max_new_tokens=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished demo, its outcome, and the work that it counted."""
    folder, counted = tmp_path_factory.mktemp("demo"), Counted()
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_model(patch, folder)
        outcome = Demo(recipe(folder / "out"), RATES).carry_out(counted)
        yield folder / "out", outcome, counted.done


def logged(folder, name):
    return [json.loads(line)["loss"] for line in (folder / "runs" / name / "log.jsonl").read_text().splitlines()]


def test_runs_that_coincide_in_rate_are_run_once(tmp_path):
    same = Rates(best={"lora": 0.01, "lora_ga": 0.01}, common=0.01)
    apart = Rates(best={"lora": 0.01, "lora_ga": 0.02}, common=0.04)
    made = recipe(tmp_path)

    assert Demo(made, RATES).runs() == [("lora", 0.02), ("lora_ga", 0.01), ("lora", 0.01)]
    assert Demo(made, same).runs() == [("lora", 0.01), ("lora_ga", 0.01)]
    assert len(Demo(made, apart).runs()) == 4


def test_demo_ends_with_a_table_a_picture_and_an_adapter(finished):
    folder, outcome, _ = finished

    kinds = [(row.title, row.rate_kind, row.learning_rate) for row in outcome.rows]
    assert kinds == [
        ("base", "", None),
        ("LoRA", "best", 0.02),
        ("LoRA-GA", "best", 0.01),
        ("LoRA", "common", 0.01),
        ("LoRA-GA", "common", 0.01),
    ]
    best, common, lora_ga = (logged(folder, name) for name in ("lora-0.02", "lora-0.01", "lora_ga-0.01"))
    assert [row.steps_to_lora for row in outcome.rows] == [
        None,
        3,
        steps_until(lora_ga, final_loss(best)),
        3,
        steps_until(lora_ga, final_loss(common)),
    ]
    results = json.loads((folder / "results.json").read_text())
    assert [row["loss"] for row in results["table"]] == [row.loss for row in outcome.rows]
    assert results["runs"]["lora at 0.02"]["losses"] == best
    assert outcome.picture.stat().st_size > 10_000
    PeftModel.from_pretrained(tiny_model(), outcome.adapter)


def test_every_run_sees_the_same_batches(finished):
    folder, *_ = finished

    first_losses = {logged(folder, name)[0] for name in ("lora-0.02", "lora-0.01", "lora_ga-0.01")}
    assert len({round(loss, 5) for loss in first_losses}) == 1  # before the first step every method is the base model


def test_each_run_is_a_recipe_that_loraga_train_takes(finished):
    folder, *_ = finished

    from loraga.lab.recipe_check import load_recipe

    for name in ("lora-0.02", "lora_ga-0.01"):
        made = load_recipe(folder / "runs" / name / "recipe.yaml")
        assert recipe_values(made)["output_dir"] == str(folder / "runs" / name)


def test_an_interrupted_demo_does_only_what_is_left(finished, tmp_path, monkeypatch):
    real = demo_module.run

    def killed(made, *rest):
        if made.method == "lora_ga":
            raise Killed("now")
        return real(made, *rest)

    monkeypatch.setattr(demo_module, "run", killed)
    with pytest.raises(Killed, match="now"):
        Demo(recipe(tmp_path / "out"), RATES).carry_out(Counted())
    monkeypatch.setattr(demo_module, "run", real)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    counted = Counted()

    outcome = Demo(recipe(tmp_path / "out"), RATES).carry_out(counted)

    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [row.loss for row in outcome.rows] == [row.loss for row in finished[1].rows]
    assert counted.done == pytest.approx(Demo(recipe(tmp_path / "out"), RATES).work())


def test_a_folder_of_another_demo_is_refused(finished):
    folder, *_ = finished

    with pytest.raises(SettingsError, match=r"max_steps is 3 there, 2 here"):
        Demo(replace(recipe(folder), max_steps=2), RATES).carry_out(Counted())


def test_work_is_announced_for_all_parts_and_done_as_announced(finished):
    folder, _, done = finished

    assert done == pytest.approx(Demo(recipe(folder), RATES).work())


def test_examples_show_what_base_and_best_runs_answered(finished):
    folder, outcome, _ = finished

    def answer(file):
        return json.loads((folder / file).read_text().splitlines()[2])["answer"]

    question, right, said = outcome.examples[1]
    row = read_rows(recipe(folder)).held_out[1]
    assert (question, right) == (row["question"], row["answer"])
    assert said == {
        "base": answer("base.jsonl"),
        "LoRA": answer("runs/lora-0.02/evaluation.jsonl"),
        "LoRA-GA": answer("runs/lora_ga-0.01/evaluation.jsonl"),
    }


def test_quick_keeps_seed_and_adapter_and_makes_everything_else_small():
    small, whole = demo_recipe(Path("x"), seed=5, quick=True), demo_recipe(Path("x"), seed=5)

    assert (small.seed, small.rank, small.alpha, small.gamma) == (5, whole.rank, whole.alpha, whole.gamma)
    assert Demo(small, RATES).work() < Demo(whole, RATES).work() / 2
    assert small.rows < whole.rows / 10
