"""How a generated answer is judged against the right one; one function and one entry a metric."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBER = re.compile(r"(?:(?<!\d)[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?")


@dataclass(frozen=True)
class Metric:
    """A metric: one sentence on it, and the function (answer, target) -> right, or None if nothing is judged."""

    what: str
    is_right: Callable[[str, str], bool] | None


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


METRICS = {
    "none": Metric("only the loss is measured", None),
    "exact_match": Metric("the answer is the target, but for space around it", exact_match),
    "final_number": Metric("the last number of the answer equals that of the target (GSM8K)", final_number),
}
