from pathlib import Path

import pytest

from loraga.lab.comparison.comparison import GRID_KEYS, grid_keys, load_comparison
from loraga.lab.errors import RecipeError
from loraga.lab.methods import METHODS
from loraga.lab.recipe import Recipe

SHARED = """
model: base
data: rows.jsonl
prompt: question
target: answer
validation_rows: 2
"""


def written(folder: Path, text: str) -> Path:
    (folder / "rows.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    (folder / "grid.yaml").write_text(text + SHARED.replace("rows.jsonl", str(folder / "rows.jsonl")))
    return folder / "grid.yaml"


def load(folder: Path, text: str, *words: str):
    return load_comparison(written(folder, text), words)


def test_each_method_is_a_variant_with_the_shared_rates(tmp_path):
    made = load(tmp_path, "methods: [full, lora]\nlearning_rates: [0.001, 2e-3]")
    assert [(each.title, each.method, each.learning_rates) for each in made.variants] == [
        ("full fine-tuning", "full", (0.001, 0.002)),
        ("LoRA", "lora", (0.001, 0.002)),
    ]


def test_settings_of_a_method_are_in_its_title_unless_it_has_one(tmp_path):
    made = load(
        tmp_path,
        "methods: [{method: lora_ga, gamma: 64}, {method: lora_ga, gamma: 16, title: small}]\nlearning_rates: [0.001]",
    )
    assert [each.title for each in made.variants] == ["LoRA-GA, gamma 64", "small"]
    assert [dict(each.keys) for each in made.variants] == [{"gamma": 64}, {"gamma": 16}]


def test_a_method_may_have_rates_and_a_rank_of_its_own(tmp_path):
    made = load(
        tmp_path,
        "methods: [{method: lora, learning_rates: [0.1], rank: 2}, rslora]\nlearning_rates: [0.001]\nranks: [4, 8]",
    )
    assert [each.learning_rates for each in made.variants] == [(0.1,), (0.001,)]
    assert [each.ranks(made.grid.ranks) for each in made.variants] == [(2,), (4, 8)]
    assert [each.title for each in made.variants] == ["LoRA, rank 2", "rsLoRA"]


def test_all_parameters_have_no_rank(tmp_path):
    (full,) = load(tmp_path, "methods: [full]\nlearning_rates: [0.1]\nranks: [4, 8]").variants
    assert full.ranks([4, 8]) == (None,)


@pytest.mark.parametrize("method", METHODS)
def test_shared_keys_that_mean_nothing_for_a_method_are_left_out(tmp_path, method):
    made = load(
        tmp_path,
        f"methods: [{method}]\nlearning_rates: [0.1]\nalpha: 32\ngamma: 64\ndropout: 0.1\ngradient_batches: 4",
    )
    (variant,) = made.variants
    recipe = made.recipe(variant, *variant.ranks([8]), 0.1, 3, tmp_path / "cell")
    assert isinstance(recipe, Recipe)
    assert (recipe.method, recipe.learning_rate, recipe.seed) == (method, 0.1, 3)
    assert recipe.alpha == (32 if METHODS[method].adapter else 16)


def test_a_cell_without_a_rate_is_auto(tmp_path):
    made = load(tmp_path, "methods: [lora]\nauto: true")
    assert made.recipe(made.variants[0], 8, None, 0, tmp_path / "cell").learning_rate == "auto"


def test_the_command_line_changes_the_grid_and_the_recipe(tmp_path):
    made = load(
        tmp_path, "methods: [lora]\nlearning_rates: [0.1]", "--seeds", "[1, 2]", "max_steps=7", "output_dir=elsewhere"
    )
    assert made.grid.seeds == [1, 2]
    assert made.shared["max_steps"].value == 7
    assert made.folder == Path("elsewhere")


def test_the_first_lora_is_what_the_others_are_compared_with(tmp_path):
    grid = "methods: [full, rslora, lora]\nlearning_rates: [0.1]\n"
    assert load(tmp_path, grid).reference == "LoRA"
    assert load(tmp_path, grid + "reference: rsLoRA").reference == "rsLoRA"
    assert load(tmp_path, "methods: [full, rslora]\nlearning_rates: [0.1]").reference == "full fine-tuning"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rates: [0.1]", "methods is missing; it takes a list of methods: lora, "),
        ("methods: [lorra]\nlearning_rates: [0.1]", r"line 1: lorra: there is no method lorra; did you mean lora\?"),
        ("methods: [zzz]\nlearning_rates: [0.1]", "zzz: there is no method zzz; they are lora, "),
        ("methods: [{gamma: 4}]\nlearning_rates: [0.1]", "the method is missing"),
        ("methods: []\nlearning_rates: [0.1]", "methods takes a list"),
        ("methods: lora\nlearning_rates: [0.1]", 'methods takes a list, not "lora"'),
        ("methods: [lora]", "no learning rate to try; give learning_rates, or auto: true"),
        ("methods: [lora]\nlearning_rates: [2]", "learning_rates takes"),
        ("methods: [lora]\nlearning_rates: [0.1, 0.10]", "learning_rates has two equal values"),
        ("methods: [lora]\nlearning_rates: [0.1]\nseeds: [1, 1]", "seeds has two equal values"),
        ("methods: [lora]\nlearning_rates: [0.1]\nranks: [4, 4]", "ranks has two equal values"),
        ("methods: [lora, lora]\nlearning_rates: [0.1]", "two methods are called LoRA; give one of them a title"),
        ("methods: [{method: lora, gama: 4}]\nlearning_rates: [0.1]", r"there is no key gama; did you mean gamma\?"),
        ("methods: [{method: lora, seed: 4}]\nlearning_rates: [0.1]", "seed is given by seeds here"),
        (
            "methods: [{method: lora, learning_rates: 4}]",
            "learning_rates takes a list of numbers above 0 and at most 1",
        ),
        ("methods: [lora]\nlearning_rates: [0.1]\nlearning_rate: 0.1", "learning_rate is given by learning_rates here"),
        ("methods: [lora]\nlearning_rates: [0.1]\nmethod: lora", "method is given by methods here"),
        ("methods: [lora]\nlearnin_rates: [0.1]", r"there is no key learnin_rates; did you mean learning_rates\?"),
        ("methods: [lora]\nlearning_rates: [0.1]\nreference: LoRa", r"line 3: reference: no method is called LoRa"),
        ("methods: [lora]\nlearning_rates: [0.1]\nchoose_by: luck", "choose_by takes one of loss, score"),
        ("methods: [lora]\nlearning_rates: [0.1]\nsearch: 3", "search takes true or false, not 3"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_the_remedy(tmp_path, text, said):
    with pytest.raises(RecipeError, match=said):
        load(tmp_path, text)


def test_a_wrong_key_of_a_recipe_is_named_when_the_cells_are_made(tmp_path):
    made = load(tmp_path, "methods: [lora]\nlearning_rates: [0.1]\nrows: none")
    with pytest.raises(RecipeError, match=r"grid.yaml, line 3: rows takes"):
        made.recipe(made.variants[0], 8, 0.1, 0, tmp_path / "cell")


def test_every_key_of_the_grid_is_said_in_words():
    said = grid_keys()
    assert tuple(said) == GRID_KEYS
    assert all(len(text) > 10 for text in said.values())
