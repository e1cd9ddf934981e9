"""Comparisons that are looked at and not run."""

import json
import re
from io import StringIO

import pytest
from rich.console import Console

from loraga.cli import main
from loraga.lab.comparison.cells import MOST_RATES
from loraga.lab.comparison.compare import plan_of
from loraga.lab.comparison.comparison import load_comparison
from loraga.lab.comparison.dry_run import dry_run, is_local
from loraga.lab.comparison.dry_run_text import duration, lines_of, quantity, show_dry_run, size
from loraga.lab.comparison.speed import Speed
from tests.humaneval import needs_lock
from tests.pages import ROOT

RECIPE = """
methods: [full, {method: lora, learning_rates: [0.001, 0.002]}]
learning_rates: [0.001]
seeds: [0, 1, 2]
search: true
auto: true
model: base
data: rows.jsonl
held_out: test.jsonl
prompt: prompt
target: target
template: none
validation_rows: 4
metric: exact_match
max_new_tokens: 4
max_steps: 6
per_device_train_batch_size: 4
"""


@pytest.fixture
def place(place):
    (place / "two.yaml").write_text(RECIPE)
    return place


def looked_at(path, *words):
    comparison = load_comparison(path, words)
    return dry_run(comparison, plan_of(comparison), Console(file=StringIO()))


def test_the_cells_to_come_are_those_of_the_grid_and_the_other_seeds_and_a_search_may_add_more(place):
    found = looked_at(place / "two.yaml")
    assert [(group.name, group.to_do, group.seeds, group.searched) for group in found.groups] == [
        ("full fine-tuning", 2, 2, MOST_RATES - 1),
        ("LoRA, rank 8", 3, 2, MOST_RATES - 2),
    ]
    assert (found.cells, found.searched) == (9, 2 * MOST_RATES - 3)
    assert all(group.cost.steps == 6 and group.cost.is_counted for group in found.groups)
    # auto looks at more batches than a rate that is given
    assert found.groups[1].all_seconds > found.groups[1].cells * found.groups[1].seconds > 0
    everywhere = looked_at(place / "two.yaml", "other_seeds=all", "search=false")
    assert [(group.to_do, group.seeds, group.searched) for group in everywhere.groups] == [(6, 0, 0), (9, 0, 0)]


def test_a_dry_run_ends_with_0_and_leaves_nothing_and_says_the_same_as_json(place, capsys):
    before = sorted(place.rglob("*"))
    assert main(["compare", "two.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "18 rows" not in said
    assert "14 rows to train on, 4 for validation, 6 held out" in said
    assert "9 cells to run, one after another about" in said
    assert "a search adds rates while a best one lies at the edge: 17 cells" in said
    assert main(["compare", "two.yaml", "--dry-run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["cells"], content["cells_a_search_may_add"], content["done"]) == (9, 17, 0)
    assert content["methods"][1]["a_cell"]["steps"] == 6
    assert content["seconds"] == pytest.approx(sum(method["seconds"] for method in content["methods"]))
    assert content["memory"] > 1e8
    assert sorted(place.rglob("*")) == before


WRONG = [
    (["methods=[lorra]"], "there is no method lorra"),
    (["prompt=promt"], "row 1 of test.jsonl has no column promt .*did you mean prompt"),
    (["data=nothing.jsonl"], "data names nothing.jsonl, which is not there"),
    (["metric=label_word", 'labels=["1", "12"]'], r"the word 12 is 2 tokens|which is none of labels"),
    (["held_out=rows.jsonl"], "rows of rows.jsonl are in rows.jsonl too"),
    (["validation_rows=18"], "leaves none to train on"),
    (["validation_rows=null"], "never chosen on the test rows"),
    (["target_modules=[nothing]"], "look at target_modules"),
    (["model=base2.gguf"], "model names base2.gguf, which is not there"),
    (["optim=nothing"], "optim"),
    (["sequence_length=2", "too_long=drop"], "more tokens than sequence_length: 2"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[words[0] for words, _ in WRONG])
def test_what_is_wrong_is_found_without_a_run_and_ends_with_2(place, capsys, words, said):
    assert main(["compare", "two.yaml", "--dry-run", *words]) == 2
    found = capsys.readouterr().err
    assert re.search(said, found), found
    assert found.startswith("loraga: ")


def test_two_things_that_are_wrong_are_both_said(place, capsys):
    methods = "methods=[{method: lora, prompt: promt}, {method: rslora, target_modules: [nothing]}]"
    assert main(["compare", "two.yaml", "--dry-run", methods]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_comparison_that_starts_says_what_it_takes_first_and_a_finished_one_does_not(place, capsys):
    words = ["methods=[lora]", "auto=false", "search=false", "learning_rates=[0.001]", "seeds=[0]", "max_steps=1"]
    assert main(["compare", "two.yaml", "--cell", "0", *words]) == 0
    capsys.readouterr()
    found = looked_at(place / "two.yaml", *words)
    assert (found.cells, found.done) == (0, 1)
    assert main(["compare", "two.yaml", *words]) == 0
    assert "cells to run" not in capsys.readouterr().out
    assert main(["compare", "two.yaml", *words, "methods=[rslora]", "output_dir=o", "prompt=promt"]) == 2
    assert "has no column promt" in capsys.readouterr().err
    assert not (place / "o").exists()


PAPER = sorted((ROOT / "recipes" / "paper").glob("table*.yaml"))
SHIPPED = [
    *(pytest.param(path, marks=needs_lock if path.stem.endswith("code") else (), id=path.stem) for path in PAPER),
    pytest.param(ROOT / "recipes" / "peft_metamathqa.yaml", id="peft_metamathqa"),
]


@pytest.mark.parametrize("path", SHIPPED)
def test_every_recipe_of_a_paper_passes_with_no_network_and_its_cost_is_known(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = looked_at(path)
    assert found.seconds > 0
    assert found.memory > 1e9
    assert all(group.cost is not None for group in found.groups)
    assert any("is on the hub and was not looked at" in note for note in found.notes)
    assert any("its published shapes" in note or "tokenizer" in note for note in found.notes)


def test_data_on_the_hub_of_unknown_length_have_no_cost_and_that_is_said(place):
    words = ["data=some/where", "max_steps=null", "held_out=null", "metric=none"]
    found = looked_at(place / "two.yaml", *words)
    assert (found.seconds, found.memory, found.disk, found.groups[0].cost) == (None, None, None, None)
    assert "how many rows some/where has is not known; with rows or max_steps the cost would be" in found.notes
    assert "about ?" in lines_of(found)[0]
    show_dry_run(found, Console(file=StringIO()))
    assert looked_at(place / "two.yaml", *words[2:], "data=some/where", "rows=8").seconds > 0


def test_a_model_that_is_nowhere_has_no_cost_but_its_local_rows_are_read(place, capsys):
    assert any(
        "somebody/unknown is not on this machine" in n
        for n in looked_at(place / "two.yaml", "model=somebody/unknown").notes
    )
    assert main(["compare", "two.yaml", "--dry-run", "model=somebody/unknown", "target=tagret"]) == 2
    assert "has no column tagret" in capsys.readouterr().err


def test_what_is_local_is_told_from_what_is_on_the_hub():
    assert is_local("a/b.jsonl")
    assert is_local("reasoning_gym:arithmetic.chain_sum")
    assert not is_local("openai/gsm8k")


def test_a_faster_device_takes_less_time_but_for_loading(place):
    cost = looked_at(place / "two.yaml").groups[0].cost
    slow, fast = (Speed("CPU", "float32", rate, is_cpu=True).seconds(cost) for rate in (1e3, 1e15))
    assert slow > 1000 * fast
    assert fast == pytest.approx(5)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "?"), (4.4, "4.4 s"), (119, "120 s"), (121, "2 min"), (7300, "2 h"), (86400 * 40, "40 days")],
)
def test_a_time_is_said_in_a_unit_that_suits_it(seconds, said):
    assert duration(seconds) == said


def test_numbers_are_said_with_the_letter_of_their_power():
    assert [quantity(number) for number in (12, 1234, 2.713e18)] == ["12 ", "1.23 k", "2.71 E"]
    assert [size(number) for number in (None, 1.234e9)] == ["?", "1.2 GB"]
