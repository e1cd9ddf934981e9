"""The pages say what the program does."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from loraga.cli import COMMANDS, parser
from loraga.cli.common import no_more, read_recipe
from loraga.lab.comparison.cells import planned
from loraga.lab.comparison.comparison import load_comparison
from loraga.lab.comparison.grid_table import grid_table
from loraga.lab.recipe_check import load_recipe
from loraga.lab.recipe_help import page
from loraga.lab.tasks.table import table as tasks_table
from tests.pages import ROOT, blocks, build_workplace, commands

SHELL_BLOCKS = [block for block in blocks("bash") if not block.not_run]
LORAGA = [(block, words[1:]) for block in SHELL_BLOCKS for words in commands(block) if words[0] == "loraga"]
OTHERS = [(block, words) for block in SHELL_BLOCKS for words in commands(block) if words[0] != "loraga"]
RECIPES = [block for block in blocks("yaml") if not block.not_run]


def test_the_tables_of_methods_and_keys_are_those_that_the_program_makes():
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").rstrip().endswith(page().rstrip())


def test_the_table_of_tasks_is_the_one_that_the_program_makes():
    assert (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").rstrip().endswith(tasks_table().rstrip())


def test_the_table_of_a_comparisons_keys_is_the_one_that_the_program_makes():
    assert grid_table() in (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")


def test_the_page_on_comparing_says_of_every_table_and_figure_and_recipe_of_the_paper_which_makes_which():
    page = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    named = [f"| Table {number}" for number in range(1, 9)] + [f"| Figure {number}" for number in range(1, 6)]
    assert [name for name in named if name not in page] == []
    recipes = [path for folder in ("paper", "offline") for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))]
    assert len(recipes) >= 28
    assert [path.name for path in recipes if f"recipes/{path.parent.name}/{path.name}" not in page] == []


def test_every_command_is_on_its_page():
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")

    assert [name for name in COMMANDS if f"`loraga {name}" not in page] == []


@pytest.mark.parametrize("recipe", [ROOT / "recipes" / "gsm8k_smollm2.yaml"], ids=lambda path: path.stem)
def test_the_recipes_that_come_with_the_project_are_right(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    for name in ("train", "test"):
        (tmp_path / "gsm8k" / f"{name}.jsonl").touch()

    assert load_recipe(recipe).output_dir == f"runs/{recipe.stem}"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder in which the pages' commands make sense: their data, their first recipe, and the project's."""
    monkeypatch.chdir(tmp_path)
    build_workplace(tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "recipe.yaml").write_text(RECIPES[0].text)
    (tmp_path / "runs" / "recipe" / "adapter").mkdir(parents=True)


def cells_of(path, words=()):
    """The cells of a comparison by now."""
    return planned(load_comparison(path, words), lambda name: None, lambda name: False).cells


def id_of(value):
    return " ".join(value) if isinstance(value, list) else value.place


@pytest.mark.parametrize(("block", "words"), LORAGA, ids=id_of)
def test_every_command_of_a_page_is_taken_and_its_recipe_is_right(block, words, workplace):
    options, rest = parser(words[0], listed=False).parse_known_args(words)

    if hasattr(options, "comparison"):
        assert cells_of(Path(options.comparison), rest)
    elif hasattr(options, "recipe") and options.recipe is not None:
        assert read_recipe(options, rest).model
    else:
        no_more(rest)


@pytest.mark.parametrize("block", RECIPES, ids=lambda block: block.place)
def test_every_recipe_of_a_page_is_right(block, workplace, tmp_path):
    (tmp_path / "page.yaml").write_text(block.text)

    if "methods:" in block.text:
        assert cells_of(tmp_path / "page.yaml")
    else:
        assert load_recipe(tmp_path / "page.yaml").model


@pytest.mark.parametrize(("block", "words"), OTHERS, ids=id_of)
def test_every_other_command_of_a_page_names_what_there_is(block, words):
    targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
    if words[0] == "make":
        rules = (ROOT / "Makefile").read_text().splitlines()
        phony = next(line for line in rules if line.startswith(".PHONY:")).split()
        assert targets
        assert set(targets) <= set(phony)
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[1] == "install"
        assert {name for word in words if "[" in word for name in word.partition("[")[2].rstrip("]").split(",")} <= set(
            extras
        )
    else:
        assert words[0] in ("python", ".venv/bin/python"), f"{block.place}: no test knows what {words[0]} takes"
        script = (ROOT / words[1]).read_text()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in script] == []


def test_the_pages_hold_commands_and_recipes():
    assert len(LORAGA) >= 8
    assert len(OTHERS) >= 8
    assert len(RECIPES) >= 2
