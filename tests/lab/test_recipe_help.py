from dataclasses import MISSING, fields

import yaml

from loraga.lab.methods import METHODS
from loraga.lab.recipe import REFUSED, Recipe
from loraga.lab.recipe_check import OWN_KEYS, expected
from loraga.lab.recipe_help import groups, methods_table, page, table
from loraga.lab.training_argument_names import TRAINING_ARGUMENT_NAMES

KEYS = [key for keys in groups().values() for key in keys]


def default_of(field):
    return field.default if field.default_factory is MISSING else field.default_factory()


def test_every_own_key_is_in_one_group_in_the_order_of_the_recipe():
    assert sorted(key.name for key in KEYS) == sorted(OWN_KEYS)
    for keys in groups().values():
        places = [OWN_KEYS.index(key.name) for key in keys]
        assert places == sorted(places)
    assert list(groups()) == ["model", "data", "method", "training", "evaluation", "output"]


def test_every_key_shows_its_default():
    shown = {key.name: key.default for key in KEYS}
    for field in fields(Recipe):
        if field.name == "trainer":
            continue
        default = default_of(field)
        if default is MISSING:
            assert shown[field.name] == ("needed without task" if field.name == "data" else "needed")
        else:
            text = shown[field.name].removeprefix("default ")
            assert (None if text == "none" else yaml.safe_load(text)) == default or text == default, field.name


def test_a_line_of_help_says_what_a_key_is_what_it_takes_and_its_default():
    (rank,) = [key for key in KEYS if key.name == "rank"]

    assert rank.help == "of the adapter [a whole number of at least 1; default 8]"
    assert [key.name for key in KEYS if key.default.startswith("needed")] == ["model", "data"]
    assert all(key.takes == expected(key.name) and key.what for key in KEYS)


def test_the_table_has_a_row_of_four_cells_for_every_own_key():
    rows = [line for line in table().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]

    assert [row[0].strip("`") for row in cells] == [key.name for key in KEYS]
    assert all(len(row) == 4 and all(row) for row in cells)
    by_name = {row[0].strip("`"): row[1:] for row in cells}
    assert by_name["rank"] == ["a whole number of at least 1", "8", "of the adapter"]
    assert by_name["model"][1] == "needed"


def test_the_table_names_every_other_training_argument_that_a_recipe_takes_once():
    _, heading, passed = table().rpartition("## Passed to transformers.TrainingArguments")

    assert heading
    assert passed.strip() == ", ".join(
        f"`{name}`" for name in sorted(set(TRAINING_ARGUMENT_NAMES) - {*OWN_KEYS, *REFUSED})
    )


def test_the_table_has_a_heading_for_each_group():
    headings = [line.removeprefix("## ").lower() for line in table().splitlines() if line.startswith("## ")]

    assert headings[:-1] == list(groups())


def test_the_methods_have_a_row_each_with_what_is_their_own():
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in methods_table().splitlines()[4:]]

    assert [row[:3] for row in rows] == [[f"`{name}`", each.title, each.what] for name, each in METHODS.items()]
    own = {row[0].strip("`"): row[3] for row in rows}
    assert (own["lora"], own["lora_plus"]) == ("", "`loraplus_lr_ratio`")
    assert own["dora"] == "`learning_rate: 0.0002` in its paper's recipes"
    assert own["adalora"].endswith(
        "`learning_rate: 0.0005` in its paper's recipes, no `learning_rate: auto`, no `loraga init`"
    )
    assert page().startswith(methods_table())
    assert page().endswith(table())
