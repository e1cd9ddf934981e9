import json

import pytest
from peft import PeftModel

from loraga.lab import demo as demo_module
from loraga.lab import smollm2
from loraga.lab.curves import final_loss, steps_until
from loraga.lab.demo import Demo, quick
from loraga.lab.errors import SettingsError
from loraga.lab.experiment import Experiment
from loraga.lab.methods import Adapter
from loraga.lab.rates import Rates

from .conftest import byte_tokenizer, tiny_model

TINY = Experiment(steps=3, batch_size=4, test=6, validation=5, adapter=Adapter(rank=4, gamma=64.0))
RATES = Rates(best={"lora": 0.02, "lora_ga": 0.01}, common=0.01)


class Killed(BaseException):
    pass


def ignore(work, note):
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished demo, its outcome, and the work that it counted."""
    folder, done = tmp_path_factory.mktemp("demo") / "out", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm2, "load", lambda: (tiny_model(), byte_tokenizer()))
        demo = Demo(TINY, folder, RATES)
        outcome = demo.carry_out(lambda work, note: done.append(work))
    return folder, outcome, sum(done)


def test_runs_that_coincide_in_rate_are_run_once(tmp_path):
    same = Rates(best={"lora": 0.01, "lora_ga": 0.01}, common=0.01)
    apart = Rates(best={"lora": 0.01, "lora_ga": 0.02}, common=0.04)

    assert Demo(TINY, tmp_path / "1", RATES).runs() == [("lora", 0.02), ("lora_ga", 0.01), ("lora", 0.01)]
    assert Demo(TINY, tmp_path / "2", same).runs() == [("lora", 0.01), ("lora_ga", 0.01)]
    assert len(Demo(TINY, tmp_path / "3", apart).runs()) == 4


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
    results = json.loads((folder / "results.json").read_text())
    best, common = (results["results"][f"run, lora at {rate}"]["losses"] for rate in ("0.02", "0.01"))
    lora_ga = results["results"]["run, lora_ga at 0.01"]["losses"]
    assert [row.steps_to_lora for row in outcome.rows] == [
        None,
        3,
        steps_until(lora_ga, final_loss(best)),
        3,
        steps_until(lora_ga, final_loss(common)),
    ]
    assert [row["loss"] for row in results["table"]] == [row.loss for row in outcome.rows]
    assert outcome.picture.stat().st_size > 10_000
    PeftModel.from_pretrained(tiny_model(), outcome.adapter)


def test_an_interrupted_demo_does_only_what_is_left(tiny_smollm2, tmp_path, monkeypatch):
    real = demo_module.lab.run
    monkeypatch.setattr(demo_module.lab, "suggest_rate", lambda *args: {"value": 0.01})

    def killed(experiment, method, *rest, **named):
        if method == "lora_ga":
            raise Killed("now")
        return real(experiment, method, *rest, **named)

    monkeypatch.setattr(demo_module.lab, "run", killed)
    with pytest.raises(Killed, match="now"):
        Demo(TINY, tmp_path / "out", RATES).carry_out(ignore)
    done = []
    monkeypatch.setattr(demo_module.lab, "run", lambda *args, **named: done.append(args[1:3]) or real(*args, **named))
    monkeypatch.setattr(demo_module.lab, "evaluate_base", lambda *args: pytest.fail("evaluated again"))
    again = Demo(TINY, tmp_path / "out", RATES)
    assert again.is_done("run, lora at 0.02")

    again.carry_out(ignore)

    assert done == [("lora_ga", 0.01), ("lora", 0.01)]


def test_a_folder_of_another_demo_is_refused(finished):
    folder, *_ = finished

    with pytest.raises(SettingsError, match=r"common_rate 0\.01 there, 0\.02 here"):
        Demo(TINY, folder, Rates(best=RATES.best, common=0.02))


def test_work_is_announced_for_all_parts_and_done_as_announced(finished):
    folder, _, done = finished
    demo = Demo(TINY, folder, RATES)
    announced = demo.work()

    assert done == pytest.approx(sum(announced.values()))
    assert all(demo.is_done(part) for part in announced)


def test_examples_show_what_base_and_best_runs_answered(finished):
    folder, outcome, _ = finished

    results = json.loads((folder / "results.json").read_text())["results"]
    question, right, said = outcome.examples[1]
    assert (question, right) == (TINY.splits.test[1].question, TINY.splits.test[1].answer)
    assert said == {
        "base": results["base"]["answers"][1],
        "LoRA": results["run, lora at 0.02"]["answers"][1],
        "LoRA-GA": results["run, lora_ga at 0.01"]["answers"][1],
    }


def test_quick_keeps_seed_and_shape_and_makes_everything_else_small():
    small = quick(Experiment(seed=5))

    assert small.seed == 5
    assert small.adapter == Experiment().adapter
    assert small.cost.run("lora_ga", small.test) < Experiment().cost.run("lora_ga", 200) / 4
