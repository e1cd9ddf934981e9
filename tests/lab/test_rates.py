import math

from hypothesis import given
from hypothesis import strategies as st

from loraga.lab import rates
from loraga.lab.demo import DEMO_METHODS
from loraga.lab.rates import choose


def test_each_method_gets_its_best_rate_and_the_common_one_is_best_in_the_mean():
    runs = [
        ("lora", 1e-3, 0.9), ("lora", 2e-3, 0.6), ("lora", 4e-3, 0.5),
        ("lora_ga", 1e-3, 0.5), ("lora_ga", 2e-3, 0.52), ("lora_ga", 4e-3, 0.9),
    ]  # fmt: skip

    chosen = choose(runs)

    assert chosen.best == {"lora": 4e-3, "lora_ga": 1e-3}
    assert chosen.common == 2e-3


def test_a_rate_that_only_one_method_tried_is_not_common():
    chosen = choose([("lora", 1e-3, 0.9), ("lora", 8e-3, 0.1), ("lora_ga", 1e-3, 0.5)])

    assert (chosen.best["lora"], chosen.common) == (8e-3, 1e-3)


def test_a_run_that_diverged_is_never_chosen():
    runs = [("lora", 1e-3, math.nan), ("lora", 2e-3, 0.6), ("lora", 4e-3, math.inf), ("lora_ga", 1e-3, 0.1)]

    chosen = choose([*runs, ("lora_ga", 2e-3, 0.9), ("lora_ga", 4e-3, -math.inf)])

    assert chosen.best == {"lora": 2e-3, "lora_ga": 1e-3}
    assert chosen.common == 2e-3


@given(st.permutations([(method, rate, len(method) * rate) for method in ("lora", "full") for rate in (1.0, 2.0, 3.0)]))
def test_the_order_of_the_runs_does_not_matter(runs):
    chosen = choose(iter(runs))

    assert chosen.best == {"lora": 1.0, "full": 1.0}
    assert chosen.common == 1.0


def test_the_packages_rates_are_there_for_every_method_of_the_demo():
    stored = rates.stored()

    assert set(stored.best) == set(DEMO_METHODS)
    assert all(0 < rate < 1 for rate in (*stored.best.values(), stored.common))
    assert rates.stored_search()["command"].startswith("python -m loraga.lab.search")
