"""The pages say what the program does."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraga.cli import COMMANDS
from loraga.lab.recipe_check import load_recipe
from loraga.lab.recipe_help import table

ROOT = Path(__file__).parents[2]


def test_the_table_of_keys_is_the_one_that_the_program_makes():
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").rstrip().endswith(table().rstrip())


def test_every_command_is_on_its_page():
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")

    assert [name for name in COMMANDS if f"`loraga {name}" not in page] == []


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_with_the_project_are_right(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    for name in ("train", "test"):
        (tmp_path / "gsm8k" / f"{name}.jsonl").touch()

    assert load_recipe(recipe).output_dir == f"runs/{recipe.stem}"
