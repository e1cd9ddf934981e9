from dataclasses import MISSING, fields

import pytest
from pydantic import ValidationError

from loraga.lab.methods import METHODS
from loraga.lab.recipe import Recipe, contradictions

ROWS = {"model": "m", "data": "d", "prompt": "q", "target": "a"}
CHAT = {"model": "m", "data": "d", "chat": "messages"}
ADALORA = {"method": "adalora", "learning_rate": 1e-3}
GYM = {"model": "m", "data": "reasoning_gym:arithmetic.chain_sum", "rows": 10}


def found(values, **more):
    values = {key: value for key, value in {**values, **more}.items() if value is not MISSING}
    return contradictions(Recipe(**values), frozenset(values))


@pytest.mark.parametrize("values", [ROWS, CHAT, GYM], ids=["columns", "chat", "gym"])
@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_of_defaults_contradicts_nothing(values, method):
    rate = {"learning_rate": 1e-3} if METHODS[method].no_auto else {}
    assert found(values, method=method, **rate) == {}


RULES = [
    # values, what is added, key with the problem, its text
    (CHAT, {"prompt": "q"}, "prompt", "excludes chat"),
    (CHAT, {"target": "a"}, "target", "excludes chat"),
    (CHAT, {"template": "none"}, "template", "none excludes chat"),
    (ROWS, {"prompt": MISSING}, "prompt", "is missing"),
    (ROWS, {"target": MISSING}, "target", "is missing"),
    (GYM, {"chat": "messages"}, "chat", "has the columns question and answer"),
    (GYM, {"rows": MISSING}, "rows", "is missing"),
    (GYM, {"held_out": "other"}, "held_out", "use held_out_rows"),
    (ROWS, {"held_out_split": "validation"}, "held_out_split", "of no use without held_out"),
    (ROWS, {"metric": "exact_match"}, "metric", "give held_out or held_out_rows"),
    (CHAT, {"labels": ["no", "yes"]}, "labels", "excludes chat"),
    (ROWS, {"held_out_options": {"name": "main"}}, "held_out_options", "of no use without held_out"),
    (ROWS, {"held_out_rows": 5, "metric": "label_word"}, "metric", "label_word needs labels"),
    (ROWS, {"labels": ["no", "no "]}, "labels", "has a word twice"),
    (ROWS, {"labels": ["no", ""]}, "labels", "an empty one"),
    (ROWS, {"validation_metric": True}, "validation_metric", "needs validation_rows and a metric"),
    (
        ROWS,
        {"validation_metric": True, "validation_rows": 5},
        "validation_metric",
        "needs validation_rows and a metric",
    ),
    (ROWS, {"samples": 2, "temperature": 0.5}, "samples", "means nothing with metric: none"),
    (ROWS, {"samples": 2, "held_out_rows": 5, "metric": "gsm8k"}, "samples", "means nothing with temperature: 0"),
    (
        ROWS,
        {"samples": 2, "held_out_rows": 5, "metric": "label_word", "labels": ["no", "yes"], "temperature": 0.5},
        "samples",
        "generates no answer",
    ),
    (ROWS, {"method": "full", "rank": 4}, "rank", "means nothing with method: full"),
    (ROWS, {"method": "full", "alpha": 4.0}, "alpha", "means nothing with method: full"),
    (ROWS, {"method": "full", "dropout": 0.1}, "dropout", "means nothing with method: full"),
    (ROWS, {"method": "full", "target_modules": ["q_proj"]}, "target_modules", "means nothing with method: full"),
    (ROWS, {"method": "full", "gamma": 4.0}, "gamma", "means nothing with method: full"),
    (ROWS, {"method": "lora", "gamma": 4.0}, "gamma", "means nothing with method: lora"),
    (ROWS, {"method": "lora", "offset": "none"}, "offset", "means nothing with method: lora"),
    (ROWS, {"method": "rslora", "stability": "backward"}, "stability", "means nothing with method: rslora"),
    (ROWS, {"method": "rslora", "gradient_batches": 2}, "gradient_batches", "means nothing with method: rslora"),
    (ROWS, {"method": "gaussian", "gradients": "g"}, "gradients", "means nothing with method: gaussian"),
    (ROWS, {"method": "pissa", "gradient_batches": 2}, "gradient_batches", "means nothing with method: pissa"),
    (ROWS, {"method": "eva", "gradients": "g"}, "gradients", "means nothing with method: eva"),
    (ROWS, {"method": "peft_lora_ga", "gamma": 4.0}, "gamma", "means nothing with method: peft_lora_ga"),
    (ROWS, {"method": "dora", "offset": "none"}, "offset", "means nothing with method: dora"),
    (ROWS, {"method": "lora", "loraplus_lr_ratio": 4.0}, "loraplus_lr_ratio", "means nothing with method: lora"),
    (ROWS, {"method": "full", "init_r": 4}, "init_r", "means nothing with method: full"),
    (ROWS, {"tinit": 4.0}, "tinit", "means nothing with method: lora_ga"),
    (ROWS, {"tfinal": 4.0}, "tfinal", "means nothing with method: lora_ga"),
    (ROWS, {"deltaT": 4}, "deltaT", "means nothing with method: lora_ga"),
    (ROWS, {"method": "adalora"}, "learning_rate", "auto excludes method: adalora (its first step moves E alone"),
    (ROWS, {"method": "adalora"}, "learning_rate", "write a number, such as 0.0005"),
    (ROWS, {**ADALORA, "init_r": 8}, "init_r", "is 8 and is to fall to rank: 8; write more than rank"),
    (ROWS, {**ADALORA, "tinit": 0.5}, "tinit", "leaves none for the ranks to fall in"),
    (ROWS, {**ADALORA, "tinit": 6.0, "tfinal": 4.0, "max_steps": 10}, "tinit", "leaves none for the ranks"),
    (ROWS, {**ADALORA, "max_steps": 2}, "tinit", "leaves none for the ranks"),
    (ROWS, {"method": "pissa", "dtype": "bfloat16"}, "dtype", "bfloat16 excludes method: pissa"),
    (ROWS, {"method": "peft_lora_ga", "dtype": "float16"}, "dtype", "float16 excludes method: peft_lora_ga"),
    (ROWS, {"gradients": "g", "gradient_batches": 2}, "gradient_batches", "excludes gradients"),
    (ROWS, {"offset": "weights", "dropout": 0.1}, "offset", "weights excludes dropout"),
    (ROWS, {"offset": "weights", "dtype": "bfloat16"}, "offset", "weights excludes dtype: bfloat16"),
    (ROWS, {"offset": "weights", "dtype": "float16"}, "offset", "weights excludes dtype: float16"),
    (ROWS, {"max_steps": 3, "num_train_epochs": 2.0}, "max_steps", "excludes num_train_epochs"),
    (ROWS, {"top_p": 0.9}, "top_p", "means nothing with temperature: 0"),
]


@pytest.mark.parametrize(("values", "more", "key", "text"), RULES, ids=[f"{key}-{text}" for _, _, key, text in RULES])
def test_what_does_not_fit_together_is_found_alone(values, more, key, text):
    problems = found(values, **more)

    assert set(problems) == {key}
    assert text in problems[key]


FITTING = [
    (CHAT, {"template": "chat"}),
    (GYM, {"prompt": "Q: {question}", "target": "answer"}),
    (GYM, {"held_out_rows": 5, "metric": "exact_match"}),
    (ROWS, {"held_out": "other", "held_out_split": "validation", "metric": "final_number"}),
    (ROWS, {"held_out_rows": 5, "metric": "exact_match"}),
    (ROWS, {"held_out_rows": 5, "metric": "gsm8k", "samples": 2, "temperature": 0.5}),
    (ROWS, {"held_out_rows": 5, "metric": "label_word", "labels": ["no", "yes"]}),
    (ROWS, {"held_out": "other", "held_out_options": {"name": "main"}}),
    (ROWS, {"validation_rows": 5}),
    (ROWS, {"validation_rows": 5, "validation_metric": True, "metric": "exact_match"}),
    (ROWS, {"method": "lora", "rank": 4, "dropout": 0.1, "dtype": "bfloat16"}),
    (ROWS, {"method": "gaussian", "offset": "none"}),
    (ROWS, {"gradients": "g"}),
    (ROWS, {"method": "eva", "gradient_batches": 2}),
    (ROWS, {"method": "peft_lora_ga", "gradient_batches": 2, "dropout": 0.1}),
    (ROWS, {"method": "lora_plus", "loraplus_lr_ratio": 4.0, "dtype": "bfloat16"}),
    (ROWS, {**ADALORA, "init_r": 9, "tinit": 6.0, "tfinal": 3.0, "deltaT": 2, "max_steps": 10}),
    (ROWS, {**ADALORA, "tinit": 600.0, "tfinal": 0.9}),
    (ROWS, {"offset": "weights"}),
    (ROWS, {"max_steps": 3}),
    (ROWS, {"top_p": 0.9, "temperature": 0.5}),
]


@pytest.mark.parametrize(("values", "more"), FITTING)
def test_what_fits_together_is_not_found(values, more):
    assert found(values, **more) == {}


def test_a_key_that_means_nothing_is_named_once_with_the_way_out():
    assert found(ROWS, method="lora", offset="weights", dropout=0.1) == {
        "offset": "means nothing with method: lora; remove it"
    }


WRONG = {
    "rows": "ten",
    "rank": 8.5,
    "seed": True,
    "alpha": "16",
    "dropout": 1.0,
    "gamma": 0.0,
    "learning_rate": "fast",
    "method": "bitfit",
    "task": "sst3",
    "labels": ["one"],
    "overlap": "keep",
    "samples": 0,
    "validation_rows": 0,
    "metric": "bleu",
    "dtype": "float64",
    "gradient_checkpointing": 1,
    "target_modules": [1],
    "data_options": "main",
    "top_p": 0.0,
    "sequence_length": 1,
    "max_steps": 0,
}


@pytest.mark.parametrize(("key", "value"), WRONG.items())
def test_a_wrong_value_is_refused_where_the_recipe_is_made(key, value):
    with pytest.raises(ValidationError, match=key):
        Recipe(**ROWS, **{key: value})


@pytest.mark.parametrize("key", ["model", "data"])
def test_model_and_data_are_needed(key):
    with pytest.raises(ValidationError, match=key):
        Recipe(**{name: value for name, value in ROWS.items() if name != key})


def test_a_recipe_cannot_be_changed():
    with pytest.raises(AttributeError, match="rank"):
        Recipe(**ROWS).rank = 4


def test_every_default_is_a_value_that_the_recipe_itself_takes():
    made = Recipe(**ROWS)

    assert Recipe(**{each.name: getattr(made, each.name) for each in fields(Recipe)}) == made
