"""Tests that WizardLM's refusals are left out, and that a question of MT-Bench is asked in its first turn."""

from __future__ import annotations

import pytest

from loraga.lab.errors import DataError, RecipeError
from loraga.lab.judging.mt_bench import Question
from loraga.lab.prompts import make_prompted
from loraga.lab.recipe_check import check
from loraga.lab.recipe_file import Written
from loraga.lab.tasks import TASKS
from loraga.lab.tasks.chat import first_turn, without_refusal


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("Here is a list.", True),
        ("As an AI language model, I cannot", False),
        ("As an AI, I", False),
        ("\n As an AI, I", False),
        ("Sorry, I", False),
        ("Sorry", False),
        ("I am sorry to hear that. As an AI, I", True),  # the authors' code leaves these out too, the paper does not
        ("As an aid, take", True),
        ("Not sorry", True),
        ("", False),
        (" \n", False),
    ],
)
def test_an_answer_that_begins_with_a_refusal_is_dropped(answer, kept):
    row = {"instruction": "Help.", "output": answer}
    assert without_refusal(row) == (row if kept else None)


QUESTION = {"prompt_id": 111, "category": "math", "prompt": ["1 + 1?", "And 2 + 2?"], "reference": ["2", "4"]}


def recipe_of(**keys):
    base = {"model": "tiny", "task": "wizardlm_mt_bench", **keys}
    return check({key: Written(value, "recipe.yaml") for key, value in base.items()})


def test_a_question_is_asked_as_an_instruction_is_trained(tokenizer):
    recipe = recipe_of()
    rows = [{"instruction": "1 + 1?", "output": "2"}]
    (trained,) = make_prompted(rows, recipe, tokenizer, "rows")
    (asked,) = make_prompted([first_turn(QUESTION)], recipe, tokenizer, "rows", judged=True)
    assert asked.prompt == trained.prompt
    assert trained.prompt.endswith("### Instruction:\n1 + 1?\n\n### Response:\n")
    assert (trained.target, asked.target) == ("2", "")
    assert Question.of(asked.columns) == Question.of(QUESTION) == Question(111, "math", "1 + 1?", "2")


def test_rows_to_train_on_need_an_answer_all_the_same(tokenizer):
    with pytest.raises(DataError, match="row 1 of rows has no target"):
        make_prompted([{"instruction": "a", "output": ""}], recipe_of(), tokenizer, "rows")


def test_what_is_no_question_of_mt_bench_is_refused():
    with pytest.raises(DataError, match="is no question of MT-Bench"):
        first_turn({"question": "1 + 1?"})


JUDGE = {"judge_url": "https://host/v1", "judge_model": "gpt-4"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"judge_url": "https://host/v1"}, "judge_url needs judge_model beside it"),
        ({"judge_model": "gpt-4"}, "judge_model needs judge_url beside it"),
        ({"judge_url": "host", "judge_model": "gpt-4"}, "judge_url is to begin with https://"),
        ({"judge_url": "https://a:secret@host", "judge_model": "gpt-4"}, "judge_url holds more than an address; a key"),
        ({**JUDGE, "metric": "exact_match"}, "asks no judge; remove it"),
        ({"judge_references": "gone.jsonl"}, "judge_references needs judge_url beside it"),
        ({**JUDGE, "judge_references": "gone.jsonl"}, "judge_references names gone.jsonl, which is not there"),
        ({"samples": 2, "temperature": 0.5}, "samples means nothing with metric: mt_bench"),
        ({"validation_rows": 2, "validation_metric": True}, "validation_metric means nothing with metric: mt_bench"),
    ],
)
def test_a_wrong_judge_is_refused_with_the_recipe(keys, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of(**keys)


def test_the_task_has_the_papers_settings():
    keys = TASKS["wizardlm_mt_bench"].keys
    assert (keys["rows"], keys["sequence_length"], keys["held_out"]) == (52_000, 1024, "HuggingFaceH4/mt_bench_prompts")
