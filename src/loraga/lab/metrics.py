"""How answers are judged against the right ones; one entry a metric."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .gsm8k import is_right as gsm8k_right
from .gsm8k import is_right_by_peft
from .programs.humaneval import COLUMNS as PROBLEM_COLUMNS
from .programs.humaneval import Problem, pass_at_k

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .prompts import Prompted

    Line = Mapping[str, Any]  # of evaluation.jsonl

KS = (1, 2, 3, 5, 10, 20, 50, 100, 200)  # of PASS@k
_OPEN_FENCE = re.compile(r"```py[^\n`]*\n\Z")
_NUMBER = re.compile(r"(?:(?<!\d)[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?")


@dataclass(frozen=True)
class Verdict:
    """The score of one answer, and a word on why."""

    score: float
    note: str


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        what: one sentence on it.
        judged_by: what a row's score is made from: nothing, answers that are generated, the probabilities of the label
            words where the target begins, or another model that rates the answers afterwards.
        judge: (answer, row) -> score of a generated answer, from 0 to 1 where `is_binary`; or the same as a Verdict.
        is_binary: whether an answer is right (1) or wrong (0) and nothing between: a share of right ones has Wilson's
            interval.
        columns: columns of a row that `judge` reads beside the target, by `row.columns`.
        figures: lines -> further figures by name.
        score_name: what tables call the score.
        is_share: whether the score lies between 0 and 1, and tables show it in percent.
        runs_code: whether judging an answer runs a program that the model wrote.
        has_targets: whether rows have a target to measure the loss of.
    """

    what: str
    judged_by: Literal["nothing", "answers", "label_words", "another_model"] = "nothing"
    judge: Callable[[str, Prompted], float | Verdict] | None = None
    is_binary: bool = True
    columns: tuple[str, ...] = ()
    figures: Callable[[Sequence[Line]], Mapping[str, float]] | None = None
    score_name: str = "accuracy"
    is_share: bool = True
    runs_code: bool = False
    has_targets: bool = True

    @property
    def generates(self) -> bool:
        """Whether answers are generated."""
        return self.judged_by in ("answers", "another_model")


def compared(is_right: Callable[[str, str], bool]) -> Callable[[str, Prompted], float]:
    """A judge from a comparison of the answer with the target."""
    return lambda answer, row: float(is_right(answer, row.target))


def exact_match(answer: str, target: str) -> bool:
    """Whether the answer is the target, but for space around it."""
    return answer.strip() == target.strip()


def final_number(answer: str, target: str) -> bool:
    """Whether the last number of the answer equals that of the target, as a number: 1,200 is 1200.0."""
    said, right = last_number(answer), last_number(target)
    return said is not None and said == right


def last_number(text: str) -> float | None:
    """The last number in a text; None if there is none."""
    found = [
        number
        for number in _NUMBER.findall(text.replace("\u2212", "-"))
        if any(character.isdigit() for character in number)
    ]
    return float(found[-1].replace(",", "")) if found else None


def peft_rule(lines: Sequence[Line]) -> dict[str, float]:
    """The share of right answers by the rule of PEFT's method comparison."""
    shares = [
        sum(is_right_by_peft(answer, line["target"]) for answer in answers) / len(answers)
        for line in lines
        for answers in (answers_of(line),)
    ]
    return {"peft_rule": sum(shares) / len(shares)}


def answers_of(line: Line) -> list[str]:
    """The answers that a line holds: one as `answer`, several as `answers`."""
    return list(line["answers"]) if "answers" in line else [line["answer"]]


def matthews(lines: Sequence[Line]) -> dict[str, float]:
    """Matthews' correlation of what was said with what is right, for any number of classes (Gorodkin 2004).

    R = cov(said, right) / sqrt(cov(said, said) cov(right, right)), the covariances summed over the classes; 0 where one
    of the two is always the same.
    """
    said, right = [line["answer"] for line in lines], [line["target"] for line in lines]
    product = math.sqrt(_covariance(said, said) * _covariance(right, right))
    return {"matthews": _covariance(said, right) / product if product else 0.0}


def _covariance(first: Sequence[str], second: Sequence[str]) -> float:
    """rows^2 times the covariance of two classifications, as indicators, summed over the classes: a whole number."""
    together = sum(one == other for one, other in zip(first, second, strict=True))
    return len(first) * together - sum(first.count(name) * second.count(name) for name in set(first))


def humaneval(answer: str, row: Prompted) -> Verdict:
    """1 if the program of an answer passes its problem's tests, else 0, with how it ended."""
    opening = _OPEN_FENCE.search(row.prompt)  # the prompt may have begun the code block
    ran = Problem.of(row.columns).run((opening[0] if opening else "") + answer)
    return Verdict(float(ran.passed), ran.outcome)


def pass_at(lines: Sequence[Line]) -> dict[str, float]:
    """PASS@k, the mean over the problems, for some k up to the number of samples."""
    drawn = [[score == 1 for score in line.get("scores", [line["score"]])] for line in lines]
    return {
        f"pass@{k}": sum(pass_at_k(len(passed), sum(passed), k) for passed in drawn) / len(drawn)
        for k in KS
        if k <= min(map(len, drawn))
    }


METRICS = {
    "none": Metric("only the loss is measured"),
    "exact_match": Metric("the answer is the target, but for space around it", "answers", compared(exact_match)),
    "final_number": Metric(
        "the last number of the answer equals that of the target", "answers", compared(final_number)
    ),
    "gsm8k": Metric(
        "the final answer of a worked solution is the target's number (GSM8K), and the same by PEFT's rule",
        "answers",
        compared(gsm8k_right),
        figures=peft_rule,
    ),
    "humaneval": Metric(
        "the program that the answer means passes the problem's tests (HumanEval: PASS@1, and PASS@k of k samples)",
        "answers",
        humaneval,
        columns=PROBLEM_COLUMNS,
        figures=pass_at,
        score_name="PASS@1",
        runs_code=True,
    ),
    "mt_bench": Metric(
        "answers are written out for a judge; its mean rating from 1 to 10 (MT-Bench, first turn)",
        "another_model",
        is_binary=False,
        columns=("question_id", "category", "turns", "reference"),
        score_name="rating",
        is_share=False,
        has_targets=False,
    ),
    "label_word": Metric(
        "the label word of the highest probability where the target begins is the right one",
        "label_words",
        figures=matthews,
    ),
}
