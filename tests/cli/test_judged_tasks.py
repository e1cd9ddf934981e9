"""Code and chat from end to end, as a user types it: training, answers, programs that run, a judge that is asked."""

from __future__ import annotations

import json

import pytest

from loraga.cli import main
from tests.humaneval import needs_lock
from tests.lab.conftest import saved, tiny_model
from tests.lab.judge_server import refuses, says, serving
from tests.lab.tasks.test_code import ROW

SMALL = (
    "model: tiny\nlearning_rate: 1e-3\nmax_steps: 1\nper_device_train_batch_size: 2\nsequence_length: 1500\nrank: 2\n"
)
CODE = SMALL + (
    "task: code_feedback_humaneval\ndata: feedback.jsonl\nheld_out: humaneval.jsonl\nmax_new_tokens: 6\n"
    "run_generated_code: true\nsamples: 2\ntemperature: 0.8\ntop_p: 0.95\noutput_dir: code\n"
)
CHAT = SMALL + (
    "task: wizardlm_mt_bench\ndata: wizard.jsonl\nheld_out: questions.jsonl\nmax_new_tokens: 6\noutput_dir: chat\n"
)
FEEDBACK = [{"query": f"Print {number}.", "answer": f"```python\nprint({number})\n```\nDone."} for number in range(4)]
WIZARD = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(4)]
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a letter.", "Shorter."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "2 + 2?"], "reference": ["two", "four"]},
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    saved(tiny_model(), tmp_path / "tiny")
    files = {"feedback": FEEDBACK, "humaneval": [ROW], "wizard": WIZARD, "questions": QUESTIONS}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "code.yaml").write_text(CODE)
    (tmp_path / "chat.yaml").write_text(CHAT)
    return tmp_path


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@needs_lock
def test_code_is_trained_generated_run_and_scored(place, capsys):
    assert main(["train", "code.yaml"]) == 0
    held_out = json.loads((place / "code" / "metrics.json").read_text())["held_out"]
    assert (held_out["metric"], held_out["score"]) == ("humaneval", 0)
    assert held_out["scores"] == {"pass@1": 0, "pass@2": 0}
    (line,) = lines(place / "code" / "evaluation.jsonl")[1:]
    assert len(line["answers"]) == len(line["notes"]) == 2
    assert set(line["notes"]) <= {"failed", "left early"}

    capsys.readouterr()
    assert main(["evaluate", "code.yaml", "--base", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == {"pass@1": 0, "pass@2": 0}

    assert main(["evaluate", "code.yaml", "run_generated_code=false"]) == 2
    assert "write run_generated_code: true to allow that" in capsys.readouterr().err


def test_answers_wait_for_a_judge_and_its_rating_comes_into_the_results(place, capsys):
    assert main(["train", "chat.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 answers wait in chat/mt_bench for a judge: `loraga judge chat/mt_bench --judge-url URL" in said
    results = place / "chat" / "metrics.json"
    assert json.loads(results.read_text())["held_out"]["score"] is None
    assert json.loads(results.read_text())["held_out"]["loss"] is None
    (answer, other) = lines(place / "chat" / "mt_bench" / "model_answer" / "chat.jsonl")
    rows = lines(place / "chat" / "evaluation.jsonl")[1:]
    assert [each["choices"][0]["turns"] for each in (answer, other)] == [[row["answer"]] for row in rows]
    assert lines(place / "chat" / "mt_bench" / "question.jsonl")[1]["reference"] == ["two"]

    def judge(_, content):
        return says("[[4]]") if "Write a letter." in content["messages"][1]["content"] else refuses(400, "filtered")

    with serving(judge) as server:
        words = ["judge", "chat", "--judge-url", server.url, "--judge-model", "gpt-4"]
        assert main(words) == 1
        said = capsys.readouterr().out
        assert "question 111 has no rating: HTTP 400 (filtered)" in said
        held_out = json.loads(results.read_text())["held_out"]
        assert (held_out["score"], held_out["scores"]) == (4, {"judged": 1})
        scored = lines(place / "chat" / "evaluation.jsonl")[1:]
        assert [(row["answer"], row["score"]) for row in scored] == [(rows[0]["answer"], 4), (rows[1]["answer"], None)]
        assert held_out["note"].startswith(
            "1 of 2 answers have no rating (question 111: HTTP 400 (filtered)); the score is"
        )
    with serving(lambda *_: says("Rating: [[8]]")) as server:
        words[words.index("--judge-url") + 1] = server.url
        assert main([*words, "--json"]) == 0
        assert len(server.got) == 1
    (ratings,) = json.loads(capsys.readouterr().out)["ratings"]
    assert (ratings["rating"], ratings["judged"], ratings["questions"], ratings["unjudged"]) == (6, 2, 2, {})
    assert json.loads(results.read_text())["held_out"]["score"] == 6
    assert [row["score"] for row in lines(place / "chat" / "evaluation.jsonl")[1:]] == [4, 8]

    assert main(["train", "chat.yaml"]) == 0  # it is done; what is shown is the rating
    said = capsys.readouterr().out
    assert "mt_bench ┃ judged" in said
    assert " 6.0000 │      2 │" in said


def test_a_judge_of_the_recipe_is_asked_at_once_and_one_that_is_not_there_loses_nothing(place, capsys):
    with serving(lambda *_: says("[[7]]")) as server:
        keys = [f"judge_url={server.url}", "judge_model=gpt-4"]
        assert main(["evaluate", "chat.yaml", "--base", "--json", *keys]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["score"], found["scores"], found["note"]) == (7, {"judged": 2}, "")

    (place / "questions.jsonl").write_text(json.dumps({**QUESTIONS[1], "reference": None}) + "\n")
    keys = ["judge_url=http://127.0.0.1:9/v1", "judge_model=gpt-4", "output_dir=other"]
    assert main(["evaluate", "chat.yaml", "--base", *keys]) == 0
    assert (
        "since 1 questions of math, reasoning, coding have no reference answer to judge by" in capsys.readouterr().out
    )
    assert (place / "other" / "mt_bench" / "model_answer" / "tiny.jsonl").is_file()


def test_a_folder_without_answers_is_wrong_use(place, capsys):
    assert main(["judge", ".", "--judge-url", "https://host/v1", "--judge-model", "gpt-4"]) == 2
    assert "holds no answers to judge; `loraga evaluate` with metric: mt_bench writes them" in capsys.readouterr().err
