"""Whether a worked solution ends with the right number: a fair reading of its final answer, and PEFT's rule beside it.

solution --what is marked as the answer, or the last sentence with a number--> its number == the target's
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

# --- the rule of PEFT's method_comparison/MetaMathQA, so that figures can be set beside those published there

_PEFT_MARKS = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")


def is_right_by_peft(answer: str, target: str) -> bool:
    r"""Whether PEFT's method comparison takes an answer for right.

    What follows the last of the marks that occur (the first kind counts) is compared as a number or a fraction, else
    letter by letter. There "2,125" is no number, and "18 dollars" or "\boxed{18}" is not 18.

    Args:
        answer: what a model wrote.
        target: the worked solution.

    Returns:
        Whether both say the same.
    """
    said, right = _after_a_mark(answer), _after_a_mark(target)
    if said is None or right is None:
        return False
    said_number, right_number = _peft_number(said), _peft_number(right)
    if said_number is None and right_number is None:
        return said == right
    return said_number == right_number


def _after_a_mark(text: str) -> str | None:
    text = text.strip().rstrip(".!?")
    mark = next((each for each in _PEFT_MARKS if each in text), None)
    if mark is None:
        return None
    return text.rpartition(mark)[2].strip().split("\n", 1)[0].strip(" .!?$%")


def _peft_number(text: str) -> float | None:
    try:
        parts = [Decimal(part.strip()) for part in text.split("/")]
        if len(parts) > 2 or parts[1:] == [0]:
            return None
        return float(parts[0] / parts[1] if len(parts) == 2 else parts[0])
    except (ArithmeticError, ValueError):  # the first are decimal's own, the second is what a signalling NaN raises
        return None


# --- the corrected rule

_MARK = re.compile(r"####|\\boxed\s*(?=\{)|\banswers?\s*(?:is\s*:?|are\s*:?|:|=|would be|was)", re.IGNORECASE)
_NEXT_QUESTION = re.compile(r"\n\s*(?:###\s*Instruction|Question\s*:|Q\s*:)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)])[-+])?(?:"
    rf"(?P<whole>\d+)(?:\s+and\s+|\s+|-)(?P<above>\d+)\s*/\s*(?P<below>\d+)"
    rf"|(?P<numerator>{_WHOLE}(?:\.\d+)?)\s*/\s*(?P<denominator>{_WHOLE}(?:\.\d+)?)"
    rf"|(?P<plain>{_WHOLE}(?:\.\d+)?|\.\d+)"
    rf")(?P<scale>\s*(?:thousand|million|billion)\b)?",
    re.IGNORECASE,
)
_DOLLARS = re.compile(r"([-+]?\d[\d,]*) dollars? and (\d\d?) cents?", re.IGNORECASE)
_GOES_ON = re.compile(r"\s*(?:[-+*/×÷]|x\b|to\b|or\b|and\b)\s*[-+]?\.?\d", re.IGNORECASE)  # noqa: RUF001  # as people write
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_LATEX = (
    (r"\\d?t?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2"),
    (r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}", r" \1"),
    (r"(?<=\d)(?:\{,\}|\\,|\\!|,\\!|[\u00a0\u202f\u2009])(?=\d{3}(?!\d))", ","),
    (r"\\[()\[\]!,;$%]|\\", lambda found: found[0][1:] if found[0][1:] in "$%" else " "),
    (r"<<[^<>]*>>", ""),
    (r"[$€£¥]\s*", ""),
    (r"\*\*|__|`", ""),
    (r"[\u2212\u2010\u2011\u2013](?=\s?[\d.])", "-"),
    (r"\bnegative\s+(?=[\d.])|(?<![\d)%])(?:^|(?<=\s))minus\s+(?=[\d.])", "-"),
)


def is_right(answer: str, target: str) -> bool:
    """Whether the final answer of a solution is the target's number.

    Args:
        answer: what a model wrote.
        target: the worked solution.

    Returns:
        Whether both end with the same number.
    """
    said, right = final_answer(answer), final_answer(target)
    return said is not None and right is not None and math.isclose(said, right, rel_tol=1e-9)


def final_answer(text: str) -> float | None:
    r"""The number that a solution gives as its answer.

    It is what stands after the last "####", "answer is" or in the last \boxed{}; without any, in the last sentence with
    a number. There it is the number after the last "=", or else the first (without a mark, the last) one. Currency,
    units and commas do not matter, and 50% is 50, as in GSM8K. Two numbers, such as 5 or 6, are no answer.

    Args:
        text: a worked solution, up to where another question begins.

    Returns:
        The number; None if there is none.
    """
    text = _NEXT_QUESTION.split(text.strip(), maxsplit=1)[0]
    marks = list(_MARK.finditer(text))
    if marks and (marked := _marked(text, marks[-1])):
        return _number_in(_plain(marked), first=True)
    sentences = [each for each in _SENTENCE_END.split(_plain(text)) if re.search(r"\d", each)]
    return _number_in(sentences[-1], first=False) if sentences else _in_words(text)


def _marked(text: str, mark: re.Match[str]) -> str:
    """What follows a mark: to the closing brace of a box, else to the end of its sentence."""
    rest = text[mark.end() :]
    if mark[0].startswith("\\"):
        depth = 0
        for place, character in enumerate(rest):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                return rest[1:place].strip()
        return rest[1:].strip()
    return _SENTENCE_END.split(rest.strip(" \n\t:*"), maxsplit=1)[0].strip()


def _plain(text: str) -> str:
    """A text without the marks of LaTeX, Markdown, currency and calculators, and with plain minus signs."""
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text.strip()


def _number_in(text: str, first: bool) -> float | None:
    before, equals, after = text.rpartition("=")
    if equals and re.search(r"\d", after):
        text, first = after.strip(), True
    elif equals:
        text = before
    if first:
        text = re.sub(r"^-\s+(?=[\d.])", "-", text)
        if re.fullmatch(r"-?\d{1,3}(?: \d{3})+", text):
            text = text.replace(" ", "")
        if dollars := _DOLLARS.search(text):
            sign = -1 if dollars[1].startswith("-") else 1
            return float(dollars[1].replace(",", "")) + sign * int(dollars[2]) / 100
    found = list(_NUMBER.finditer(text))
    if not found:
        return _in_words(text)
    number = found[0] if first else found[-1]
    return None if first and _GOES_ON.match(text, number.end()) else _value(number)


def _value(found: re.Match[str]) -> float | None:
    part = {name: float(text.replace(",", "")) for name, text in found.groupdict().items() if text and name in _PARTS}
    if 0.0 in (part.get("below"), part.get("denominator")):
        return None
    if "plain" in part:
        value = part["plain"]
    elif "numerator" in part:
        value = part["numerator"] / part["denominator"]
    else:
        value = part["whole"] + part["above"] / part["below"]
    scale = _SCALES[found["scale"].strip().lower()] if found["scale"] else 1
    return (-value if found["sign"] == "-" else value) * scale


_PARTS = {"whole", "above", "below", "numerator", "denominator", "plain"}
_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: value for value, word in enumerate((*_UNITS, *_TEENS))} | {
    word: 10 * tens for tens, word in enumerate(_TENS, start=2)
}


def _in_words(text: str) -> float | None:
    """The last number that is written out in words: "two hundred and five", "negative seven"."""
    number: int | None = None
    total = 0
    negative = False
    last: float | None = None
    for word in [*re.findall(r"[a-z]+", text.lower()), ""]:
        if word in _WORDS:
            number = (number or 0) + _WORDS[word]
        elif word == "hundred" and number is not None:
            number *= 100
        elif word in _SCALES and number is not None:
            total, number = total + number * _SCALES[word], 0
        elif word != "and" or number is None:
            if number is not None:
                last = -float(total + number) if negative else float(total + number)
            number, total, negative = None, 0, word in ("negative", "minus")
    return last
