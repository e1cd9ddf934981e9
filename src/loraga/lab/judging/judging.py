"""Rates MT-Bench answers through an endpoint, a judgement a line: the same call asks only what is not yet judged.

question.jsonl, model_answer/ --judge's prompt--> endpoint --rating--> model_judgment/ --mean--> Judged
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import DataError, SettingsError
from ..run_folder import read_lines, write_whole
from .chat_endpoint import Endpoint, EndpointError
from .mt_bench import BY_REFERENCE, NO_SCORE, JudgePrompt, Question, answer_line, judge_prompt, judgment_line, rating

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..progress import Progress

QUESTIONS, ANSWERS, JUDGMENTS = "question.jsonl", "model_answer", "model_judgment"
WAITS = (1.0, 4.0, 16.0)  # seconds before each new try
LONGEST_WAIT = 60.0  # that an endpoint may ask for
OUTAGE = 3  # questions in a row without an answer, after which no more are asked
MAX_TOKENS = 2048  # of a judgement, as FastChat asks


@dataclass(frozen=True)
class Judged:
    """How answers were rated.

    Attributes:
        model: who answered.
        judge: who judged.
        questions: how many there are.
        ratings: {question: rating from 1 to 10} of those judged.
        unjudged: {question: why it has no rating}.
        by_category: {category: mean rating}, over those judged.
    """

    model: str
    judge: str
    questions: int
    ratings: Mapping[int, float]
    unjudged: Mapping[int, str] = field(default_factory=dict)
    by_category: Mapping[str, float] = field(default_factory=dict)

    @property
    def rating(self) -> float | None:
        """The mean over the questions that were judged; None if none was."""
        return sum(self.ratings.values()) / len(self.ratings) if self.ratings else None

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "model": self.model,
            "judge": self.judge,
            "rating": self.rating,
            "judged": len(self.ratings),
            "questions": self.questions,
            "by_category": dict(self.by_category),
            "unjudged": {str(number): reason for number, reason in self.unjudged.items()},
        }


def write_answers(folder: Path, questions: Sequence[Question], answers: Sequence[str], model: str) -> Path:
    """Writes questions and answers in FastChat's format; what is there and says the same is left as it is.

    Args:
        folder: made if it is not there.
        questions: in order.
        answers: one each.
        model: who answered.

    Returns:
        The file of the answers.
    """
    file = folder / answers_name(model)
    now = time.time()
    lines = [answer_line(question, answer, model, now) for question, answer in zip(questions, answers, strict=True)]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(folder / QUESTIONS, _as_lines([question.line() for question in questions]))
    if [line["answer_id"] for line in read_lines(file)] != [line["answer_id"] for line in lines]:
        write_whole(file, _as_lines(lines))
    return file


def judge_answers(
    folder: Path, endpoint: Endpoint, references: Path | None, progress: Progress, only: str | None = None
) -> list[Judged]:
    """Rates the answers of a folder that are not rated yet.

    Args:
        folder: holds question.jsonl and model_answer; each judgement is added to model_judgment when it is there.
        endpoint: the judge.
        references: JSON lines of reference answers as FastChat has them; without, those of the questions are used.
        progress: told the questions that are done.
        only: a model's name, if only its answers are to be rated.

    Returns:
        How each model's answers were rated.

    Raises:
        SettingsError: if there are no answers, the address is wrong, or a reference answer is missing.
    """
    endpoint.check()
    questions = _with_references(_questions(folder), references)
    files = sorted((folder / ANSWERS).glob("*.jsonl")) if only is None else [folder / answers_name(only)]
    if not questions or not files:
        raise SettingsError(
            f"{folder} holds no {QUESTIONS} with {ANSWERS}/*.jsonl; evaluate with metric: mt_bench first"
        )
    return [_judge_model(folder, questions, read_lines(file), endpoint, progress) for file in files]


def answers_name(model: str) -> str:
    """Where a model's answers stand in the folder."""
    return f"{ANSWERS}/{file_name(model)}.jsonl"


def file_name(model: str) -> str:
    """A model's name as that of a file."""
    return re.sub(r"[^\w.-]+", "_", model).strip(".") or "model"


def _judge_model(
    folder: Path,
    questions: Mapping[int, Question],
    answers: Sequence[Mapping[str, Any]],
    endpoint: Endpoint,
    progress: Progress,
) -> Judged:
    file = folder / JUDGMENTS / f"{file_name(endpoint.model)}_single.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = {_asked(line): line["score"] for line in _kept(file) if line["score"] != NO_SCORE}
    model = str(answers[0]["model_id"]) if answers else ""
    ratings: dict[int, float] = {}
    unjudged: dict[int, str] = {}
    todo = []
    for line in answers:
        if line["question_id"] not in questions:
            raise DataError(
                f"{folder / ANSWERS} answers question {line['question_id']}, which {QUESTIONS} does not hold"
            )
        question = questions[line["question_id"]]
        prompt = judge_prompt(question, line["choices"][0]["turns"][0])
        asked = (question.question_id, model, endpoint.model, prompt.name, prompt.user)
        if asked in known:
            ratings[question.question_id] = known[asked]
        else:
            todo.append((question, prompt))
    progress.begin(f"judgement of {model}", len(answers), len(ratings))
    stopped, silent = "", 0
    for question, prompt in todo:
        if stopped:
            unjudged[question.question_id] = f"not asked, since the judge failed before: {stopped}"
            continue
        judgment, failed = _patiently(endpoint, prompt)
        reason = "" if failed is None else str(failed)
        line = judgment_line(question, model, endpoint.model, prompt, judgment, reason, time.time())
        with file.open("a", encoding="utf-8") as stream:
            stream.write(_as_lines([line]))
        if failed is None:
            ratings[question.question_id] = line["score"]
        else:
            unjudged[question.question_id] = reason
        silent = silent + 1 if failed is not None and failed.again and not failed.answered else 0
        if failed is not None and (failed.hopeless or silent == OUTAGE):
            stopped = reason
        progress.advance(1, f"judgement: {len(ratings)} of {len(answers)}")
    return Judged(model, endpoint.model, len(answers), ratings, unjudged, _means(questions, ratings))


def _patiently(endpoint: Endpoint, prompt: JudgePrompt) -> tuple[str | None, EndpointError | None]:
    """A judgement with a rating, or why there is none after a few tries."""
    failed: EndpointError | None = None
    for wait in (*WAITS, None):
        try:
            judgment = endpoint.ask(prompt.system, prompt.user, MAX_TOKENS)
            if rating(judgment) is not None:
                return judgment, None
            reason = f"no rating from 1 to 10 in what the judge said: {judgment[-200:].strip()!r}"
            failed = EndpointError(reason, again=True, answered=True)
        except EndpointError as error:
            failed = error
        if wait is None or not failed.again:
            break
        time.sleep(max(wait, min(failed.wait, LONGEST_WAIT)))
    return None, failed


def _questions(folder: Path) -> dict[int, Question]:
    made = {}
    for number, row in enumerate(read_lines(folder / QUESTIONS), start=1):
        try:
            question = Question.of(row)
        except DataError as cause:
            raise DataError(f"line {number} of {folder / QUESTIONS} {cause}") from cause
        made[question.question_id] = question
    return made


def _with_references(questions: Mapping[int, Question], file: Path | None) -> dict[int, Question]:
    """The questions with their reference answers; none that is judged by one may lack it."""
    made = dict(questions)
    if file is not None and not file.is_file():
        raise SettingsError(f"{file} is not there")
    if file is not None:
        try:
            given = {line["question_id"]: line["choices"][0]["turns"][0] for line in read_lines(file)}
        except (LookupError, TypeError) as cause:
            raise DataError(
                f"{file} holds no reference answers as FastChat's reference_answer/gpt-4.jsonl does"
            ) from cause
        made = {number: replace(each, reference=given.get(number, each.reference)) for number, each in made.items()}
    missing = [number for number, each in made.items() if each.category in BY_REFERENCE and each.reference is None]
    if missing:
        raise SettingsError(
            f"{len(missing)} questions of {', '.join(BY_REFERENCE)} have no reference answer to judge by (the first: "
            f"{missing[0]}); name FastChat's llm_judge/data/mt_bench/reference_answer/gpt-4.jsonl by --references"
        )
    return made


def _kept(file: Path) -> list[dict[str, Any]]:
    """The lines of a file that is added to, which is left without a half last one."""
    lines = read_lines(file)
    if file.exists():
        write_whole(file, _as_lines(lines))
    return lines


def _asked(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return (line["question_id"], line["model"], *line["judge"], line["user_prompt"])


def _means(questions: Mapping[int, Question], ratings: Mapping[int, float]) -> dict[str, float]:
    found = defaultdict(list)
    for number, value in ratings.items():
        found[questions[number].category].append(value)
    return {category: sum(values) / len(values) for category, values in found.items()}


def _as_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)
