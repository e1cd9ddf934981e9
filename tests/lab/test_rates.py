import math

from loraga.lab import rates
from loraga.lab.methods import METHODS
from loraga.lab.rates import choose


def record(method, rate, loss):
    return {"method": method, "learning_rate": rate, "loss": loss}


def test_each_method_gets_its_best_rate_and_the_common_one_is_best_in_the_mean():
    runs = [
        record("lora", 1e-3, 0.9), record("lora", 2e-3, 0.6), record("lora", 4e-3, 0.5),
        record("lora_ga", 1e-3, 0.5), record("lora_ga", 2e-3, 0.52), record("lora_ga", 4e-3, 0.9),
    ]  # fmt: skip

    chosen = choose(runs)

    assert chosen.best == {"lora": 4e-3, "lora_ga": 1e-3}
    assert chosen.common == 2e-3


def test_a_rate_that_only_one_method_tried_is_not_common():
    runs = [record("lora", 1e-3, 0.9), record("lora", 8e-3, 0.1), record("lora_ga", 1e-3, 0.5)]

    assert choose(runs).common == 1e-3


def test_a_run_that_diverged_is_never_chosen():
    runs = [record("lora", 1e-3, math.nan), record("lora", 2e-3, 0.6)]

    assert choose(runs).best == {"lora": 2e-3}


def test_the_packages_rates_are_those_that_its_runs_choose():
    content = rates.stored_search()
    runs = [record(run["method"], run["learning_rate"], run["validation_loss"]) for run in content["runs"]]

    assert rates.stored() == choose(runs)
    assert set(rates.stored().best) == set(METHODS)
