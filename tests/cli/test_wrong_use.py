"""Wrong recipes and arguments, each with the exact message it gets (`...` where another library's words follow)."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from loraga.cli import main

from .workplace import build

CASES = json.loads(Path(__file__).with_name("wrong_use.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    build(folder)
    return folder


@pytest.fixture
def said(workplace, monkeypatch, capsys):
    """Runs one command and gives its exit code and the lines on stderr."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(command):
        try:
            code = main(shlex.split(command))
        except SystemExit as end:  # argparse's way
            code = end.code
        return code, capsys.readouterr().err.splitlines()

    return run


def test_the_table_is_long_enough_to_mean_something():
    assert len({case["command"] for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=[case["command"] or "no command" for case in CASES])
def test_wrong_use_is_said_in_one_line_for_each_thing_that_is_wrong(said, case):
    code, lines = said(case["command"])

    assert code == case["exit"]
    assert len(lines) == len(case["messages"])
    for line, message in zip(lines, case["messages"], strict=True):
        expected = f"loraga: {message}"
        assert line == expected or (message.endswith("...") and line.startswith(expected.removesuffix("...")))


def test_wrong_use_leaves_no_folder_behind(said, workplace):
    assert said("train good.yaml rank=0 output_dir=fresh")[0] == 2
    assert said("train good.yaml target=label output_dir=fresh")[0] == 2

    assert not (workplace / "fresh").exists()


TRL_EXAMPLE = """\
model_name_or_path:
  Qwen/Qwen2.5-0.5B
dataset_name:
  stanfordnlp/imdb
report_to:
  none
learning_rate:
  0.0001
lr_scheduler_type:
  cosine
"""


def test_trls_own_example_pasted_under_a_recipe_names_each_refused_key_and_its_reason(said, workplace):
    recipe = workplace / "pasted.yaml"
    recipe.write_text("model: tiny\ndata: rows.jsonl\nprompt: question\ntarget: answer\n" + TRL_EXAMPLE)

    code, lines = said("train pasted.yaml")

    assert code == 2
    assert lines == [
        "loraga: pasted.yaml, line 5: model_name_or_path is no key here: write model",
        "loraga: pasted.yaml, line 7: dataset_name is no key here: write data",
    ]


def test_what_is_left_of_trls_example_is_accepted(said, workplace):
    kept = TRL_EXAMPLE.splitlines(keepends=True)[4:]
    recipe = workplace / "kept.yaml"
    recipe.write_text("model: tiny\ndata: rows.jsonl\nprompt: question\ntarget: answer\n" + "".join(kept))

    assert said("config kept.yaml") == (0, [])
