import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from loraga.lab import experiment as lab
from loraga.lab.encoding import batches
from loraga.lab.evaluation import evaluate, greedy_answers
from loraga.lab.experiment import Experiment
from loraga.lab.methods import METHODS, Adapter
from loraga.lab.training import TrainingRun

from .conftest import byte_tokenizer, tiny_model

TINY = Experiment(steps=3, batch_size=4, test=6, validation=5, adapter=Adapter(rank=4, gamma=64.0))


class Work:
    def __init__(self):
        self.done, self.notes = 0.0, []

    def __call__(self, work, note):
        self.done += work
        self.notes.append(note)


@pytest.fixture
def work():
    return Work()


def test_base_is_evaluated_on_the_test_items(tiny_smollm2, work):
    found = lab.evaluate_base(TINY, work)

    expected = evaluate(tiny_model(), byte_tokenizer(), TINY.splits.test)
    assert found["loss"] == pytest.approx(expected.loss)
    assert found["accuracy"] == expected.accuracy
    assert found["answers"] == greedy_answers(tiny_model(), byte_tokenizer(), TINY.splits.test[: lab.EXAMPLES])
    assert work.done == pytest.approx(TINY.cost.evaluation(6))


@pytest.mark.parametrize("method", METHODS)
def test_a_runs_record_belongs_to_the_adapter_that_it_saved(method, tiny_smollm2, work, tmp_path):
    record = lab.run(TINY, method, 0.01, TINY.splits.validation, work, save=tmp_path / "adapter")

    reloaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    found = evaluate(reloaded, byte_tokenizer(), TINY.splits.validation)
    assert found.loss == pytest.approx(record["loss"], rel=1e-4)
    assert found.loss != pytest.approx(lab.evaluate_base(replace(TINY, test=5), work)["loss"], rel=1e-4)
    assert (record["method"], record["learning_rate"], len(record["losses"])) == (method, 0.01, 3)
    json.dumps(record)


def test_both_methods_see_the_same_training_batches(tiny_smollm2, work, monkeypatch):
    seen = []

    def keep(model, ready, *rest):
        seen.append(ready)
        return TrainingRun(losses=(1.0,), seconds_per_step=1.0)

    monkeypatch.setattr(lab, "train", keep)

    for method in METHODS:
        lab.run(TINY, method, 0.01, TINY.splits.validation, work)

    expected = batches(byte_tokenizer(), TINY.splits.train, TINY.batch_size)
    for ready in seen:
        assert all(
            torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(ready, expected, strict=True)
        )
    assert len(seen) == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_run_counts_the_work_that_it_was_estimated_at(method, tiny_smollm2, work):
    lab.run(TINY, method, 0.01, TINY.splits.validation, work)

    assert work.done == pytest.approx(TINY.cost.run(method, 5))
    assert any("step 3 of 3, loss" in note for note in work.notes)


def test_a_suggested_rate_is_drawn_and_positive(tiny_smollm2, work, tmp_path):
    found = lab.suggest_rate(TINY, "lora", tmp_path / "rate.png", work)

    assert 0 < found["value"] < 1
    assert (tmp_path / "rate.png").stat().st_size > 1000
    assert work.done == pytest.approx(TINY.cost.suggestion("lora"))
    json.dumps(found)


def test_a_step_is_timed(tiny_smollm2):
    assert 0 < lab.time_one_step(TINY) < 10


def test_settings_are_json_and_name_everything_that_decides_a_result():
    settings = json.loads(json.dumps(TINY.settings()))

    assert settings["adapter"] == {"rank": 4, "alpha": 16, "gamma": 64.0}
    assert settings["task"]["settings"] == dict(lab.TASK.settings)
    assert {"model", "steps", "seed", "batch_size", "test", "validation"} < set(settings)
