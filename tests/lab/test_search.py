import json
import math

import pytest

from loraga.lab import search as search_module
from loraga.lab.experiment import Experiment
from loraga.lab.search import MOST_RATES, next_rate, search
from loraga.lab.store import Store


class Killed(BaseException):
    pass


LOSSES = {"lora": lambda rate: abs(math.log(rate / 0.008)), "lora_ga": lambda rate: abs(math.log(rate / 0.0005)) + 1}


@pytest.fixture
def runs(monkeypatch):
    """Replaces training by losses with their minimum at a known rate; returns what was run."""
    done = []

    def run(experiment, method, rate, items, advance):
        assert items == experiment.splits.validation
        done.append((method, rate))
        return {"method": method, "learning_rate": rate, "loss": LOSSES[method](rate), "accuracy": 0.5,
                "losses": [1.0] * 12, "seconds_per_step": 1.234}  # fmt: skip

    monkeypatch.setattr(search_module, "run", run)
    return done


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({0.001: 3, 0.002: 1, 0.004: 2}, None),
        ({0.001: 1, 0.002: 2}, 0.0005),
        ({0.001: 2, 0.002: 1}, 0.004),
        ({0.001: 2, 0.002: 1, 0.004: math.nan}, None),
        ({0.001: math.nan, 0.002: math.nan}, 0.0005),
    ],
)
def test_search_goes_on_at_the_edge_where_the_best_rate_lies(losses, expected):
    assert next_rate(losses) == expected


def test_search_ends_even_if_the_loss_always_falls():
    losses = {0.001: 1.0}
    while (rate := next_rate(losses)) is not None:
        losses[rate] = -len(losses)

    assert len(losses) == MOST_RATES


def test_each_method_is_searched_until_its_best_rate_has_worse_neighbours(runs, tmp_path):
    store = Store(tmp_path / "search.json", {})

    search(Experiment(), store, [0.001, 0.002, 0.004], lambda work, note: None)

    assert [rate for method, rate in runs if method == "lora"] == [0.001, 0.002, 0.004, 0.008, 0.016]
    assert [rate for method, rate in runs if method == "lora_ga"] == [0.001, 0.002, 0.004, 0.0005, 0.00025]


def test_an_interrupted_search_goes_on_and_writes_what_it_found_with_its_command(runs, tmp_path):
    arguments = ["--output", str(tmp_path), "--rates", "0.002", "0.004", "--write", str(tmp_path / "rates.json")]
    real = search_module.run

    def killed(experiment, method, rate, items, advance):
        if method == "lora_ga":
            raise Killed("now")
        return real(experiment, method, rate, items, advance)

    search_module.run = killed
    with pytest.raises(Killed, match="now"):
        search_module.main(arguments, say=lambda line: None)
    search_module.run = real
    before = len(runs)
    assert search_module.main(arguments, say=lambda line: None) == 0

    content = json.loads((tmp_path / "rates.json").read_text())
    assert {method for method, rate in runs[before:]} == {"lora_ga"}
    assert content["best"] == {"lora": 0.008, "lora_ga": 0.0005}
    assert content["command"].startswith("python -m loraga.lab.search --output")
    assert content["runs"][0]["validation_loss"] == round(LOSSES["lora"](0.002), 4)


def test_a_folder_with_another_search_is_refused(runs, tmp_path, capsys):
    Store(tmp_path / "search.json", {"steps": 1}).once("x", lambda: 1)

    assert search_module.main(["--output", str(tmp_path)], say=lambda line: None) == 2
    assert "other settings" in capsys.readouterr().err
