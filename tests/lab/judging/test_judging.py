"""Tests that answers are judged one by one, and that what a judge spoils is kept apart and asked again."""

from __future__ import annotations

import json
import re

import pytest

from loraga.lab.errors import DataError, SettingsError
from loraga.lab.judging import judging
from loraga.lab.judging.chat_endpoint import Endpoint
from loraga.lab.judging.judging import file_name, judge_answers, write_answers
from loraga.lab.judging.mt_bench import Question
from tests.lab.judge_server import Reply, refuses, says, serving
from tests.lab.judging.test_mt_bench import DATA, lines, needs_data

CATEGORIES = ("writing", "math", "writing", "stem", "coding", "roleplay")
QUESTIONS = [
    Question(81 + number, category, f"question {number}?", "42" if category in ("math", "coding") else None)
    for number, category in enumerate(CATEGORIES)
]
ANSWERS = [f"answer {number}" for number in range(6)]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(judging, "WAITS", (0.0, 0.0))


@pytest.fixture
def folder(tmp_path):
    write_answers(tmp_path, QUESTIONS, ANSWERS, "my/model")
    return tmp_path


def judge(folder, url, told, seconds=5.0):
    (judged,) = judge_answers(folder, Endpoint(url, "org/judge", seconds), None, told)
    return judged


def number_in(content):
    """Which answer the judge is asked about."""
    return int(re.search(r"answer (\d)", content["messages"][1]["content"])[1])


def well(_, content):
    return says(f"Explained. Rating: [[{number_in(content) + 2}]]")


def judgments(folder):
    return [
        json.loads(line) for line in (folder / "model_judgment" / "org_judge_single.jsonl").read_text().splitlines()
    ]


def test_a_judge_that_behaves_rates_every_answer_once(folder, told):
    with serving(well) as server:
        judged = judge(folder, server.url, told)
        again = judge(folder, server.url, told)
    assert len(server.got) == 6
    assert judged.ratings == {81: 2, 82: 3, 83: 4, 84: 5, 85: 6, 86: 7}
    assert (judged.rating, judged.questions, judged.unjudged) == (4.5, 6, {})
    assert judged.by_category == {"writing": 3, "math": 3, "stem": 5, "coding": 6, "roleplay": 7}
    assert again == judged
    assert told.begun == [("judgement of my/model", 6, 0), ("judgement of my/model", 6, 6)]
    assert told.work == [1] * 6
    assert [line["judge"][1] for line in judgments(folder)] == [
        "single-math-v1" if each.category in ("math", "coding") else "single-v1" for each in QUESTIONS
    ]
    assert "question 1?" in server.got[1][2]["messages"][1]["content"]
    assert "Reference Answer]\n42\n" in server.got[1][2]["messages"][1]["content"]


SPOILT = {
    "nonsense": (says("I like it."), "no rating from 1 to 10 in what the judge said: 'I like it.'", 3),
    "a rating out of range": (says("[[11]]"), r"no rating from 1 to 10 in what the judge said: '\[\[11\]\]'", 3),
    "a refusal": (says(None, refusal="No."), r"refused \(No.\)", 3),
    "an error": (refuses(500), "HTTP 500", 3),
    "too many requests": (refuses(429, **{"Retry-After": "0"}), "HTTP 429", 3),
    "a question it cannot take": (refuses(400, "content filter"), r"HTTP 400 \(content filter\)", 1),
    "silence": (Reply(b"", seconds=0.5), "no answer within 0.2 s", 3),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_question_that_the_judge_spoils_is_recorded_with_the_reason_and_asked_again_by_the_same_call(
    how, folder, told
):
    reply, reason, tries = SPOILT[how]
    with serving(lambda _, content: reply if number_in(content) == 3 else well(_, content)) as server:
        judged = judge(folder, server.url, told, seconds=0.2)
        assert len(server.got) == 5 + tries
    assert list(judged.ratings) == [81, 82, 83, 85, 86]
    assert list(judged.unjudged) == [84]
    assert re.match(reason, judged.unjudged[84])
    assert judged.rating == pytest.approx((2 + 3 + 4 + 6 + 7) / 5)
    assert (judged.to_dict()["judged"], judged.to_dict()["questions"]) == (5, 6)
    (spoilt,) = [line for line in judgments(folder) if line["score"] == -1]
    assert (spoilt["question_id"], spoilt["reason"], spoilt["judgment"]) == (84, judged.unjudged[84], "$ERROR$")
    with serving(well) as server:
        whole = judge(folder, server.url, told)
        assert len(server.got) == 1
    assert whole.ratings == {81: 2, 82: 3, 83: 4, 85: 6, 86: 7, 84: 5}
    assert not whole.unjudged


def test_a_judge_that_fails_twice_and_then_answers_has_judged(folder, told):
    with serving(lambda count, content: refuses(503) if count % 3 else well(count, content)) as server:
        assert judge(folder, server.url, told).rating == 4.5
        assert len(server.got) == 18


def test_waits_grow_and_the_judges_own_wish_counts_up_to_a_limit(folder, told, monkeypatch):
    slept = []
    monkeypatch.setattr(judging, "WAITS", (1.0, 4.0))
    monkeypatch.setattr("time.sleep", slept.append)
    for header, expected in (("", [1, 4]), ("3", [3, 4]), ("9999", [60, 60])):
        slept.clear()
        with serving(lambda *_, header=header: refuses(429, **{"Retry-After": header})) as server:
            judge(folder, server.url, told)
        assert [each for each in slept if each][:2] == expected


@pytest.mark.parametrize(("reply", "asked"), [(refuses(401), 1), (refuses(404), 1), (None, 9), (refuses(500), 9)])
def test_a_judge_that_nobody_gets_an_answer_from_is_left_alone(reply, asked, folder, told):
    with serving(lambda *_: reply) as server:
        judged = judge(folder, server.url, told)
        assert len(server.got) == asked
    assert judged.rating is None
    assert list(judged.unjudged) == [each.question_id for each in QUESTIONS]
    assert judged.unjudged[86].startswith("not asked, since the judge failed before: ")
    assert len(judgments(folder)) == (1 if asked == 1 else 3)


def test_nonsense_three_times_in_a_row_does_not_stop_the_rest(folder, told):
    with serving(lambda _, content: says("?") if number_in(content) < 3 else well(_, content)) as server:
        assert list(judge(folder, server.url, told).ratings) == [84, 85, 86]


def test_an_interrupted_judgement_goes_on_and_a_half_line_is_dropped(folder, told):
    with serving(well) as server:
        judge(folder, server.url, told)
        file = folder / "model_judgment" / "org_judge_single.jsonl"
        text = file.read_text()
        file.write_text(text[: text.index('{"question_id": 84') + 40])
        assert judge(folder, server.url, told).rating == 4.5
        assert len(server.got) == 9
    assert [line["question_id"] for line in judgments(folder)] == [81, 82, 83, 84, 85, 86]


def test_whatever_a_judge_says_can_be_kept(folder, told):
    with serving(lambda *_: says("\ud800 \x00 \u2028 Rating: [[7]]")) as server:
        assert judge(folder, server.url, told).rating == 7
        assert judge(folder, server.url, told).rating == 7
        assert len(server.got) == 6


@needs_data
def test_all_of_mt_bench_is_judged_with_the_published_reference_answers(tmp_path, told):
    questions = [Question.of(row) for row in lines("question.jsonl")]
    write_answers(tmp_path, questions, ["an answer"] * 80, "model")
    with serving(lambda *_: says("[[5]]")) as server:
        endpoint = Endpoint(server.url, "gpt-4")
        (judged,) = judge_answers(tmp_path, endpoint, DATA / "reference_answer_gpt-4.jsonl", told)
        asked = [content["messages"][1]["content"] for *_, content in server.got]
    assert (judged.rating, len(judged.ratings), len(judged.by_category)) == (5, 80, 8)
    published = {line["question_id"]: line["choices"][0]["turns"][0] for line in lines("reference_answer_gpt-4.jsonl")}
    assert sum("[The Start of Reference Answer]" in each for each in asked) == len(published) == 30
    for question, text in zip(questions, asked, strict=True):
        assert published.get(question.question_id, "") in text


def test_another_answer_or_another_judge_is_judged_anew(folder, told):
    with serving(well) as server:
        judge(folder, server.url, told)
        write_answers(folder, QUESTIONS, [*ANSWERS[:5], "answer 0"], "my/model")
        assert judge(folder, server.url, told).ratings[86] == 2
        assert len(server.got) == 7
        judge_answers(folder, Endpoint(server.url, "other"), None, told)
        assert len(server.got) == 13


def test_answers_that_are_written_again_keep_their_file(folder):
    file = folder / "model_answer" / "my_model.jsonl"
    before = file.read_bytes()
    assert write_answers(folder, QUESTIONS, ANSWERS, "my/model") == file
    assert file.read_bytes() == before
    write_answers(folder, QUESTIONS, [*ANSWERS[:5], "new"], "my/model")
    assert file.read_bytes() != before


def test_reference_answers_of_fastchat_take_the_place_of_the_questions_own(folder, told, tmp_path):
    references = tmp_path / "gpt-4.jsonl"
    references.write_text(json.dumps({"question_id": 82, "choices": [{"turns": ["forty-two", "second"]}]}) + "\n")
    with serving(well) as server:
        judge_answers(folder, Endpoint(server.url, "org/judge"), references, told)
        asked = [content["messages"][1]["content"] for *_, content in server.got]
    assert "Reference Answer]\nforty-two\n" in asked[1]
    assert "Reference Answer]\n42\n" in asked[4]


def test_what_is_missing_is_said_before_anything_is_asked(tmp_path, told):
    endpoint = Endpoint("http://127.0.0.1:1/v1", "judge")
    with pytest.raises(
        SettingsError, match=r"holds no question.jsonl with model_answer/\*.jsonl; evaluate with metric"
    ):
        judge_answers(tmp_path, endpoint, None, told)
    write_answers(tmp_path, [Question(111, "math", "1 + 1?")], ["2"], "model")
    with pytest.raises(
        SettingsError, match=r"1 questions of math, reasoning, coding have no reference.*111.*--references"
    ):
        judge_answers(tmp_path, endpoint, None, told)
    with pytest.raises(SettingsError, match=r"gpt-4\.jsonl is not there"):
        judge_answers(tmp_path, endpoint, tmp_path / "gpt-4.jsonl", told)
    (tmp_path / "gpt-4.jsonl").write_text('{"question_id": 111}\n')
    with pytest.raises(DataError, match="holds no reference answers as FastChat's"):
        judge_answers(tmp_path, endpoint, tmp_path / "gpt-4.jsonl", told)
    with pytest.raises(SettingsError, match="the judge's address is to begin with https"):
        judge_answers(tmp_path, Endpoint("example.com", "judge"), None, told)
    (tmp_path / "question.jsonl").write_text('{"question_id": 111}\n')
    with pytest.raises(DataError, match=r"line 1 of .*question.jsonl is no question of MT-Bench"):
        judge_answers(tmp_path, endpoint, None, told)
    (tmp_path / "question.jsonl").write_text('{"question_id": 81, "category": "stem", "turns": ["a?"]}\n')
    with pytest.raises(DataError, match=r"answers question 111, which question.jsonl does not hold"):
        judge_answers(tmp_path, endpoint, None, told)


@pytest.mark.parametrize(("model", "name"), [("org/model-7b.v1", "org_model-7b.v1"), ("../..", "_"), ("", "model")])
def test_a_models_name_is_a_file_in_the_folder(model, name):
    assert file_name(model) == name
