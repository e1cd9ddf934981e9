import re
from dataclasses import fields

import pytest
import yaml
from peft import LoraConfig
from transformers import TrainingArguments
from trl import ModelConfig, ScriptArguments, SFTConfig

from loraga.lab.errors import RecipeError
from loraga.lab.foreign_keys import FOREIGN_KEYS
from loraga.lab.metrics import METRICS
from loraga.lab.recipe import REFUSED, Recipe
from loraga.lab.recipe_check import OWN_KEYS, check, expected, load_recipe, nearest, schema, words
from loraga.lab.recipe_file import Written, recipe_text
from loraga.lab.tasks import TASKS
from loraga.lab.training_argument_names import TRAINING_ARGUMENT_NAMES

GOOD = {"model": "m", "data": "d", "prompt": "q", "target": "a"}


def checked(values):
    return check({key: Written(value, f"line {line}") for line, (key, value) in enumerate(values.items(), start=1)})


def problems(values):
    with pytest.raises(RecipeError, match=r"\w") as caught:
        checked(values)
    return caught.value.problems


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(**values):
        path = tmp_path / "my-task.yaml"
        path.write_text(yaml.safe_dump({**GOOD, **values}), encoding="utf-8")
        return path

    return write


def init_names(kind):
    return {each.name for each in fields(kind) if each.init}


# Names


def test_the_committed_names_are_those_of_the_installed_training_arguments():
    assert tuple(sorted(init_names(TrainingArguments))) == TRAINING_ARGUMENT_NAMES


@pytest.mark.parametrize("kind", [SFTConfig, ModelConfig, ScriptArguments, LoraConfig])
def test_every_setting_that_people_paste_is_known_or_answered(kind):
    assert init_names(kind) - {*OWN_KEYS, *TRAINING_ARGUMENT_NAMES, *FOREIGN_KEYS} == set()


def test_an_answer_to_a_foreign_key_hides_no_key_of_ours():
    assert set(FOREIGN_KEYS) & {*OWN_KEYS, *TRAINING_ARGUMENT_NAMES} == set()


def test_an_answer_names_only_keys_that_are_there():
    writes = [answer for answer in FOREIGN_KEYS.values() if answer.startswith("write ")]
    named = {answer: re.match(r"write (\w+)(?:(?:,| and) (\w+)(?=$|,| and|:))?", answer).groups() for answer in writes}

    assert len(writes) > 20
    for answer, keys in named.items():
        assert set(keys) - {None} <= {*OWN_KEYS, *TRAINING_ARGUMENT_NAMES}, answer


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("rnk", "there is no key rnk; did you mean rank?"),
        ("learning_rat", "there is no key learning_rat; did you mean learning_rate?"),
        ("max_grad_nrom", "there is no key max_grad_nrom; did you mean max_grad_norm?"),
        ("RANK", "there is no key RANK; did you mean rank?"),
        ("zzzzzzzzzzz", "there is no key zzzzzzzzzzz; `loraga train --help` lists them"),
        ("lora_r", "lora_r is no key here: write rank"),
        ("packing", "packing is no key here: rows are padded, not packed"),
    ],
)
def test_an_unknown_key_is_answered_with_the_likeliest_one(key, said):
    assert problems({**GOOD, key: 4}) == [f"line 5: {said}"]


def test_trainer_is_no_key_in_a_file():
    assert problems({**GOOD, "trainer": {"bf16": True}})[0].startswith("line 5: there is no key trainer")


def test_nothing_is_near_to_a_word_like_no_other():
    assert nearest("zzzz", ["rank"]) is None


# Values


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rank", "eight", 'rank takes a whole number of at least 1, not "eight"'),
        ("rank", 8.0, "rank takes a whole number of at least 1, not 8.0"),
        ("rank", 0, "rank takes a whole number of at least 1, not 0"),
        ("rank", None, "rank takes a whole number of at least 1, not nothing"),
        ("rows", "all", 'rows takes a whole number of at least 1, or nothing, not "all"'),
        ("dropout", 1.0, "dropout takes a number of at least 0 and below 1, not 1.0"),
        ("learning_rate", "auot", 'learning_rate takes a number above 0 and at most 1, or auto, not "auot"'),
        ("learning_rate", 2, "learning_rate takes a number above 0 and at most 1, or auto, not 2"),
        ("gradient_checkpointing", "yes", 'gradient_checkpointing takes true or false, not "yes"'),
        ("target_modules", {"a": 1}, 'target_modules takes text, or a list, not {"a": 1}'),
        ("data_options", [1], "data_options takes a mapping, not [1]"),
        ("dtype", "float32s", 'float16, auto, not "float32s"; did you mean float32?'),
        ("method", "lora-ga", 'full, not "lora-ga"; did you mean lora_ga?'),
        ("metric", "exactmatch", 'label_word, not "exactmatch"; did you mean exact_match?'),
    ],
)
def test_a_wrong_value_is_answered_with_what_the_key_takes(key, value, said):
    (problem,) = problems({**GOOD, key: value})

    assert problem.startswith(f"line 5: {key} takes ")
    assert problem.endswith(said)


def test_a_missing_key_says_what_it_is():
    what = schema()["properties"]["model"]["description"]

    assert problems({"data": "d", "prompt": "q", "target": "a"}) == [f"model is missing; it takes text: {what}"]


def test_everything_that_is_wrong_is_said_at_once_with_its_place():
    found = problems({"model": 3, "prompt": "q", "rnk": 4, "rank": -1, "lora_alpha": 2})

    assert [problem.split(" takes")[0].split(";")[0] for problem in found] == [
        "line 3: there is no key rnk",
        "line 5: lora_alpha is no key here: write alpha",
        "line 1: model",
        "data is missing",
        "line 4: rank",
    ]


def test_a_contradiction_is_said_where_its_key_stands():
    assert problems({**GOOD, "method": "lora", "gamma": 4, "lr": 1}) == [
        "line 7: lr is no key here: write learning_rate",
        "line 6: gamma means nothing with method: lora; remove it",
    ]


def test_a_default_that_is_written_out_contradicts_nothing():
    plain = checked({**GOOD, "method": "lora", "max_steps": 3})
    of_other_methods = {"gamma": None, "offset": "adapter", "stability": "forward", "gradient_batches": 8}

    written_out = {"method": "lora", "max_steps": 3, "num_train_epochs": 1, "top_p": 1.0, "held_out_split": "test"}
    assert checked({**GOOD, **written_out, **of_other_methods}) == plain


def test_names_of_training_arguments_are_kept_for_them():
    recipe = checked({**GOOD, "max_grad_norm": 0.5, "eval_accumulation_steps": 2, "seed": 3})

    assert recipe.trainer == {"max_grad_norm": 0.5, "eval_accumulation_steps": 2}
    assert recipe.seed == 3


def test_a_whole_number_is_a_number():
    assert checked({**GOOD, "alpha": 32, "gamma": 64, "learning_rate": 1}).gamma == 64.0


# Files


def test_the_output_folder_is_named_after_the_recipe_unless_it_is_given(recipe_file):
    assert load_recipe(recipe_file()).output_dir == "runs/my-task"
    assert load_recipe(recipe_file(output_dir="here")).output_dir == "here"
    assert load_recipe(recipe_file(output_dir="here"), ["--output-dir", "there"]).output_dir == "there"


def test_the_command_line_wins_over_the_file(recipe_file):
    assert load_recipe(recipe_file(rank=4), ["rank=16", "max_steps=3"]).rank == 16


def test_a_wrong_override_is_said_to_come_from_the_command_line(recipe_file):
    with pytest.raises(RecipeError, match=r"^the command line: rank takes .*, not 0$"):
        load_recipe(recipe_file(rank=4), ["rank=0"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model", "./model", r"model names \./model, which is not there"),
        ("model", "tiny.gguf", r"model names tiny\.gguf, which is not there"),
        ("data", "rows.jsonl", r"data names rows\.jsonl, which is not there"),
        ("data", "/nowhere/rows", "data names /nowhere/rows, which is not there"),
        ("data", ".", r"data names \., which is no \.jsonl, \.json, \.csv, \.parquet file"),
        ("data", "notes.txt", r"data names notes\.txt, which is no \.jsonl"),
        ("held_out", "~/nowhere.csv", r"held_out names ~/nowhere\.csv, which is not there"),
        ("gradients", "g.safetensors", r"gradients names g\.safetensors, which is not there; `loraga estimate` makes"),
        ("output_dir", "notes.txt", r"output_dir names notes\.txt, which is a file, not a folder"),
    ],
)
def test_a_path_that_leads_nowhere_is_found_before_anything_is_loaded(recipe_file, tmp_path, key, value, said):
    (tmp_path / "notes.txt").write_text("")

    with pytest.raises(RecipeError, match=rf"my-task\.yaml, line \d+: {said}"):
        load_recipe(recipe_file(**{key: value}))


def test_files_that_are_there_and_names_on_the_hub_are_left_to_those_who_read_them(recipe_file, tmp_path):
    for name in ("rows.jsonl", "held.csv", "tiny.gguf", "g.safetensors"):
        (tmp_path / name).write_text("")

    load_recipe(recipe_file(data="rows.jsonl", held_out="held.csv", model="tiny.gguf", gradients="g.safetensors"))
    load_recipe(recipe_file(data="openai/gsm8k", model="HuggingFaceTB/SmolLM2-135M", held_out="openai/gsm8k"))


# The JSON schema


def fits(value, made):
    """Whether a value fits the part of JSON Schema that a recipe's schema uses; anything else in it is an error."""
    made = {
        key: rule for key, rule in made.items() if key not in ("description", "default", "group", "$schema", "title")
    }
    types = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "array": list, "object": dict}
    rules = {
        "type": lambda rule: (
            (value is None)
            if rule == "null"
            else isinstance(value, types[rule]) and (rule == "boolean" or not isinstance(value, bool))
        ),
        "const": lambda rule: value == rule,
        "enum": lambda rule: value in rule,
        "anyOf": lambda rule: any(fits(value, each) for each in rule),
        "minimum": lambda rule: value >= rule,
        "exclusiveMinimum": lambda rule: value > rule,
        "maximum": lambda rule: value <= rule,
        "exclusiveMaximum": lambda rule: value < rule,
        "items": lambda rule: all(fits(each, rule) for each in value),
        "required": lambda rule: set(rule) <= set(value),
        "properties": lambda rule: all(fits(each, rule[key]) for key, each in value.items() if key in rule),
        "additionalProperties": lambda rule: rule is True or set(value) <= set(made["properties"]),
    }
    ordered = sorted(made, key=lambda name: name != "type")
    return all(rules[name](made[name]) for name in ordered)  # a limit is only asked of a value of its type


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rank": 4, "alpha": 8, "gamma": None, "learning_rate": "auto", "target_modules": ["q_proj"]},
        {"learning_rate": 1e-3, "data_options": {"name": "main"}, "max_grad_norm": 0.5, "target_modules": "all-linear"},
    ],
)
def test_the_schema_takes_what_the_check_takes(more):
    checked({**GOOD, **more})

    assert fits({**GOOD, **more}, schema())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", 0),
        ("rank", 4.5),
        ("rank", True),
        ("method", "loha"),
        ("learning_rate", 0),
        ("learning_rate", "fast"),
        ("target_modules", [1]),
        ("gamma", -1),
        ("dropout", 1),
        ("data_options", "main"),
        ("rnk", 4),
        ("trainer", {}),
    ],
)
def test_the_schema_refuses_what_the_check_refuses(key, value):
    assert problems({**GOOD, key: value})

    assert not fits({**GOOD, key: value}, schema())


def test_the_schema_needs_model_and_data_or_a_task():
    assert not fits({"model": "m"}, schema())
    assert not fits({"data": "d"}, schema())
    assert fits({"model": "m", "data": "d"}, schema())
    assert fits({"model": "m", "task": "sst2"}, schema())


def test_the_schema_names_every_key_once_and_passes_on_the_rest():
    made = schema()

    assert set(made["properties"]) == {*OWN_KEYS, *TRAINING_ARGUMENT_NAMES} - REFUSED.keys()
    assert made["properties"]["max_grad_norm"] == {"description": "passed to transformers.TrainingArguments"}
    assert all(made["properties"][key]["description"] for key in OWN_KEYS)


def test_every_default_fits_the_schema():
    recipe = Recipe(**GOOD)
    for key in OWN_KEYS:
        assert fits(getattr(recipe, key), schema()["properties"][key]), key


@pytest.mark.parametrize("key", OWN_KEYS)
def test_what_a_key_takes_is_said_in_words(key):
    assert expected(key)
    assert "a value" not in expected(key)


def test_of_an_unusual_schema_it_is_said_that_it_takes_a_value():
    assert words({"$ref": "#/x"}) == "a value"


# Tasks


def test_a_task_sets_the_keys_that_nobody_wrote_and_no_other():
    made = checked({"model": "m", "task": "sst2", "sequence_length": 64, "labels": ["bad", "good"]})

    task = TASKS["sst2"].keys
    given = {"sequence_length": 64, "labels": ["bad", "good"]}
    assert {key: getattr(made, key) for key in task} == task | given
    plain = Recipe(model="m", data=task["data"])
    others = [each.name for each in fields(Recipe) if each.name not in (*task, "model", "task")]
    assert [getattr(made, key) for key in others] == [getattr(plain, key) for key in others]


@pytest.mark.parametrize("task", TASKS)
def test_a_recipe_that_a_task_resolved_is_read_back_as_the_same_recipe(task, tmp_path):
    for given in ({}, {"data": "mine", "held_out": "other"}, {"data": "mine", "metric": "none"}):
        if "held_out" in given and "reasoning_gym" in TASKS[task].keys["data"]:
            given = {**given, "held_out_split": "dev"}
        runs_code = METRICS[given.get("metric", TASKS[task].keys["metric"])].runs_code
        made = checked({"model": "m", "task": task, "run_generated_code": runs_code, **given})
        (tmp_path / "recipe.yaml").write_text(recipe_text(made), "utf-8")

        assert load_recipe(tmp_path / "recipe.yaml") == made


def test_rows_of_ones_own_stand_in_the_place_of_all_of_a_tasks():
    made = checked({"model": "m", "task": "sst2", "data": "mine", "held_out_rows": 5})

    assert (made.data, made.data_options, made.held_out, made.held_out_options) == ("mine", {}, None, None)
    assert (made.prompt, made.labels) == (TASKS["sst2"].keys["prompt"], ["negative", "positive"])


def test_held_out_rows_of_ones_own_are_evaluated_on_after_training_on_the_tasks():
    made = checked({"model": "m", "task": "metamath_gsm8k", "held_out": "mine"})

    assert (made.data, made.held_out, made.held_out_options) == ("meta-math/MetaMathQA", "mine", None)


def test_a_task_of_ones_own_rows_with_none_held_out_is_answered_with_the_keys_that_say_which():
    (said,) = problems({"model": "m", "task": "sst2", "data": "mine"})

    assert said == "task: sst2: metric needs rows to be measured on; give held_out or held_out_rows"


def test_an_unknown_task_is_answered_with_the_nearest_one():
    assert problems({"model": "m", "data": "d", "task": "sst"})[0].endswith('not "sst"; did you mean sst2?')
