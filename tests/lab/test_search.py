import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from loraga.lab import search as search_module
from loraga.lab.demo import demo_recipe
from loraga.lab.rates import choose
from loraga.lab.rows import read_rows
from loraga.lab.search import MOST_RATES, next_rate, search

from .conftest import use_tiny_model

LOSSES = {"lora": lambda rate: abs(math.log(rate / 0.008)), "lora_ga": lambda rate: abs(math.log(rate / 0.0005)) + 1}


def measured(recipe):
    """What a run would measure if its loss had its minimum at a known rate."""
    loss = LOSSES[recipe.method](recipe.learning_rate)
    return {"method": recipe.method, "learning_rate": recipe.learning_rate, "held_out": {"loss": loss}}


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


def test_each_method_is_searched_until_its_best_rate_has_worse_neighbours(tmp_path):
    runs = []

    search(demo_recipe(tmp_path), [0.001, 0.002, 0.004], lambda recipe: runs.append(recipe) or measured(recipe))

    rates = {method: [run.learning_rate for run in runs if run.method == method] for method in LOSSES}
    assert rates["lora"] == [0.001, 0.002, 0.004, 0.008, 0.016]
    assert rates["lora_ga"] == [0.001, 0.002, 0.004, 0.0005, 0.00025]
    assert len({run.output_dir for run in runs}) == len(runs)


def test_a_search_on_real_runs_writes_what_it_found_with_its_command(tmp_path, monkeypatch, capsys):
    use_tiny_model(monkeypatch, tmp_path)
    monkeypatch.setattr(search_module, "MOST_RATES", 3)
    arguments = ["--output", str(tmp_path / "out"), "--rates", "0.01", "0.02", "--steps", "2"]
    arguments += ["--write", str(tmp_path / "rates.json")]

    assert search_module.main(arguments) == 0
    first = json.loads((tmp_path / "rates.json").read_text())
    assert search_module.main(arguments) == 0

    assert json.loads((tmp_path / "rates.json").read_text()) == first  # nothing was run again
    runs = [(run["method"], run["learning_rate"], run["held_out_loss"]) for run in first["runs"]]
    assert len(runs) == 6
    assert (first["best"], first["common"]) == (choose(runs).best, choose(runs).common)
    assert first["command"].startswith("python -m loraga.lab.search --output")


def test_the_searched_rows_are_not_the_demos():
    made = replace(demo_recipe(Path("x")), rows=40, held_out_rows=40)
    searched = replace(made, data_seed=made.seed + search_module.OTHER_ROWS)

    shown, chosen_by = ({row["question"] for row in read_rows(each).held_out} for each in (made, searched))
    assert len(shown & chosen_by) < 4


def test_a_folder_with_another_search_is_refused(tmp_path, monkeypatch, capsys):
    use_tiny_model(monkeypatch, tmp_path)
    (tmp_path / "out" / "lora-0.002").mkdir(parents=True)
    (tmp_path / "out" / "lora-0.002" / "something").write_text("else")

    assert search_module.main(["--output", str(tmp_path / "out"), "--steps", "2"]) == 2
    assert "holds something else" in capsys.readouterr().err
