"""Tests that MT-Bench's questions, prompts and ratings are FastChat's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraga.lab.errors import DataError
from loraga.lab.judging.mt_bench import Question, answer_line, judge_prompt, judgment_line, rating

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "mt_bench"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="MT-Bench's own files are not beside this checkout")


def lines(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@needs_data
def test_every_question_is_judged_by_the_published_prompt():
    prompts = {each["name"]: each for each in lines("judge_prompts.jsonl")}
    references = {each["question_id"]: each["choices"][0]["turns"] for each in lines("reference_answer_gpt-4.jsonl")}
    asked = lines("question.jsonl")
    assert len(asked) == 80
    for row in asked:
        first = references.get(row["question_id"], [None])[0]
        question = Question.of({**row, "reference": None if first is None else [first, "second"]})
        made = judge_prompt(question, "an answer with {braces} and %s")
        published = prompts["single-v1" if first is None else "single-math-v1"]
        expected = published["prompt_template"].replace("{question}", row["turns"][0])
        expected = expected.replace("{ref_answer_1}", first or "").replace("{answer}", "an answer with {braces} and %s")
        assert (made.name, made.system, made.user) == (published["name"], published["system_prompt"], expected)
    assert set(references) == {
        row["question_id"] for row in asked if row["category"] in ("math", "reasoning", "coding")
    }


def test_a_question_is_read_in_both_columns():
    of_fastchat = {"question_id": 101, "category": "reasoning", "turns": ["a?", "b?"], "reference": ["A.", "B."]}
    of_the_hub = {"prompt_id": 101, "category": "reasoning", "prompt": ["a?", "b?"], "reference": ["A.", "B."]}
    expected = Question(101, "reasoning", "a?", "A.")
    assert Question.of(of_fastchat) == Question.of(of_the_hub) == expected == Question.of(expected.line())
    for none in ({}, {"reference": []}, {"reference": None}, {"reference": [""]}):
        question = Question.of({"prompt_id": 81, "category": "writing", "prompt": ["a?"], **none})
        assert question == Question(81, "writing", "a?") == Question.of(question.line())


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"question_id": 81, "category": "writing"},
        {"question_id": 81, "category": "writing", "turns": "a?"},
        {"question_id": 81, "category": "writing", "turns": []},
        {"question_id": 81, "turns": ["a?"]},
        {"category": "writing", "turns": ["a?"]},
    ],
)
def test_what_is_no_question_is_refused(row):
    with pytest.raises(DataError, match="is no question of MT-Bench: it needs question_id, category and turns"):
        Question.of(row)


@pytest.mark.parametrize("category", ["math", "reasoning", "coding"])
def test_where_there_is_one_right_answer_the_judge_sees_it(category):
    made = judge_prompt(Question(111, category, "1 + {1}?", "two"), "an {answer}")
    assert made.name == "single-math-v1"
    assert "[Question]\n1 + {1}?\n\n[The Start of Reference Answer]\ntwo\n[The End" in made.user
    assert "[The Start of Assistant's Answer]\nan {answer}\n[The End" in made.user
    other = judge_prompt(Question(81, "stem", "why?", "two"), "so")
    assert other.name == "single-v1"
    assert "two" not in other.user


def test_a_question_of_mathematics_is_not_judged_without_its_reference_answer():
    with pytest.raises(DataError, match=r"question 111 \(math\) has no reference answer"):
        judge_prompt(Question(111, "math", "1 + 1?"), "2")


@pytest.mark.parametrize(
    ("judgment", "found"),
    [
        ("Good. Rating: [[7]]", 7),
        ("Rating: [[7.5]]", 7.5),
        ("[[10]]", 10),
        ("[[1]]", 1),
        ("It says [[3]], then [[9]]", 3),
        ("Rating: [8]", 8),
        ("the list [2] and Rating: [[6]]", 6),
        ("Rating: [[0]]", None),
        ("Rating: [[11]]", None),
        ("Rating: [[-3]]", None),
        ("Rating: [[100]]", None),
        ("Rating: 7", None),
        ("Rating: [[seven]]", None),
        ("Rating: [[rating]]", None),
        ("Rating: [[]]", None),
        ("Rating: [[7/10]]", None),
        ("I cannot rate this.", None),
        ("", None),
        ("[[" + "1" * 100_000, None),
        ("[" * 100_000, None),
    ],
)
def test_the_rating_is_the_first_number_in_brackets(judgment, found):
    assert rating(judgment) == found


def test_lines_have_fastchats_fields():
    question = Question(81, "writing", "a?")
    answer = answer_line(question, "an answer", "model", 1.5)
    assert answer == {
        "question_id": 81,
        "answer_id": answer["answer_id"],
        "model_id": "model",
        "choices": [{"index": 0, "turns": ["an answer"]}],
        "tstamp": 1.5,
    }
    prompt = judge_prompt(question, "an answer")
    line = judgment_line(question, "model", "gpt-4", prompt, "Fine. [[8]]", "", 2.5)
    assert line == {
        "question_id": 81,
        "model": "model",
        "judge": ["gpt-4", "single-v1"],
        "user_prompt": prompt.user,
        "judgment": "Fine. [[8]]",
        "score": 8,
        "turn": 1,
        "tstamp": 2.5,
    }
    unjudged = judgment_line(question, "model", "gpt-4", prompt, None, "no answer within 120 s", 2.5)
    marks = {"judgment": "$ERROR$", "score": -1, "reason": "no answer within 120 s"}
    assert unjudged == {**line, **marks}


def test_the_id_of_an_answer_changes_with_what_it_says_alone():
    question = Question(81, "writing", "a?")
    one, again, other = (answer_line(question, text, "model", time)["answer_id"] for text, time in
                         (("a", 1), ("a", 2), ("b", 1)))  # fmt: skip
    assert one == again != other
