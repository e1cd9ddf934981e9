"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685), first turns only: questions, the judge's prompts, and its ratings.

What is written is what FastChat's llm_judge reads and writes, so that its tools go on with it:

    question.jsonl                   a question each
    model_answer/MODEL.jsonl         an answer each
    model_judgment/JUDGE_single.jsonl a judgement each; score -1 where there is none
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

BY_REFERENCE = ("math", "reasoning", "coding")  # categories that are judged beside a reference answer
NO_SCORE, NO_JUDGMENT = -1, "$ERROR$"  # as FastChat marks them
LOWEST, HIGHEST = 1, 10
_RATING = re.compile(r"\[\[(\d{1,9}(?:\.\d{0,9})?)\]\]")  # of bounded length: what a judge says may be of any
_RATING_IN_ONE_BRACKET = re.compile(r"\[(\d{1,9}(?:\.\d{0,9})?)\]")


@dataclass(frozen=True)
class Question:
    """The first turn of a question.

    Attributes:
        question_id: its number, from 81 to 160 in MT-Bench.
        category: such as "writing".
        turn: what is asked.
        reference: a right answer, where there is one.
    """

    question_id: int
    category: str
    turn: str
    reference: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Question:
        """The question in a row, in FastChat's columns or in those of HuggingFaceH4/mt_bench_prompts.

        Args:
            row: question_id, category, turns and maybe reference; or prompt_id, category, prompt and reference.

        Returns:
            The question.

        Raises:
            DataError: if the row is neither.
        """
        number, turns = row.get("question_id", row.get("prompt_id")), row.get("turns", row.get("prompt"))
        if number is None or not isinstance(turns, list) or not turns or "category" not in row:
            raise DataError("is no question of MT-Bench: it needs question_id, category and turns, a list of texts")
        references = row.get("reference") or [None]
        return cls(int(number), str(row["category"]), str(turns[0]), references[0] or None)

    def line(self) -> dict[str, Any]:
        """The question as a line of question.jsonl."""
        made = {"question_id": self.question_id, "category": self.category, "turns": [self.turn]}
        return made if self.reference is None else {**made, "reference": [self.reference]}


@dataclass(frozen=True)
class JudgePrompt:
    """What the judge is asked.

    Attributes:
        name: of the published prompt.
        system: the system's message.
        user: the user's message.
    """

    name: str
    system: str
    user: str


def judge_prompt(question: Question, answer: str) -> JudgePrompt:
    """The published prompt that rates one answer, filled in.

    Args:
        question: whose answer it is.
        answer: may be empty.

    Returns:
        single-math-v1 where the category is judged beside a reference answer, else single-v1.

    Raises:
        DataError: if the reference answer is missing.
    """
    by_reference = question.category in BY_REFERENCE
    if by_reference and question.reference is None:
        raise DataError(f"question {question.question_id} ({question.category}) has no reference answer")
    name = "single-math-v1" if by_reference else "single-v1"
    prompt = _published()[name]
    texts = {"question": question.turn, "answer": answer, "ref_answer_1": question.reference}
    return JudgePrompt(name, prompt["system_prompt"], prompt["prompt_template"].format(**texts))


def rating(judgment: str) -> float | None:
    """The rating in a judgement, as FastChat finds it: the first [[number]], else the first [number].

    Args:
        judgment: what the judge said.

    Returns:
        From 1 to 10; None if there is none.
    """
    found = _RATING.search(judgment) or _RATING_IN_ONE_BRACKET.search(judgment)
    value = None if found is None else float(found[1])
    return value if value is not None and LOWEST <= value <= HIGHEST else None


def answer_line(question: Question, answer: str, model: str, time: float) -> dict[str, Any]:
    """An answer as a line of model_answer; its id depends on what it says alone."""
    digest = hashlib.sha256(f"{question.question_id}\n{model}\n{answer}".encode(errors="surrogatepass")).hexdigest()
    return {
        "question_id": question.question_id,
        "answer_id": digest[:22],
        "model_id": model,
        "choices": [{"index": 0, "turns": [answer]}],
        "tstamp": time,
    }


def judgment_line(
    question: Question, model: str, judge: str, prompt: JudgePrompt, judgment: str | None, reason: str, time: float
) -> dict[str, Any]:
    """A judgement as a line of model_judgment.

    Args:
        question: what was asked.
        model: who answered.
        judge: who judges.
        prompt: what the judge was asked.
        judgment: what it said; None if it said nothing that holds a rating.
        reason: why not, then.
        time: when, in seconds since 1970.

    Returns:
        The line; a judgement without a rating has FastChat's score of -1, and its reason.
    """
    found = None if judgment is None else rating(judgment)
    line = {
        "question_id": question.question_id,
        "model": model,
        "judge": [judge, prompt.name],
        "user_prompt": prompt.user,
        "judgment": NO_JUDGMENT if found is None else judgment,
        "score": NO_SCORE if found is None else found,
        "turn": 1,
        "tstamp": time,
    }
    return {**line, "reason": reason} if found is None else line


@cache
def _published() -> dict[str, dict[str, str]]:
    """FastChat's prompts for single answers (lm-sys/FastChat, llm_judge/data/judge_prompts.jsonl, Apache-2.0)."""
    return json.loads(Path(__file__).with_name("mt_bench_prompts.json").read_text(encoding="utf-8"))
