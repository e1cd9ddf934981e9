import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraga.lab.gsm8k import final_answer, is_right, is_right_by_peft

from .gsm8k_answers import ANSWERS


@pytest.mark.parametrize(("answer", "number", "right", "why"), ANSWERS, ids=[each[3] for each in ANSWERS])
def test_an_awkward_answer_is_judged_as_a_fair_judge_would(answer, number, right, why):
    for target in (f"So it is {number}.\n#### {number}", f"Adding up.\nThe answer is: {number}"):
        assert is_right(answer, target) is right


def test_the_table_of_answers_is_long_and_has_right_and_wrong_ones():
    assert len({answer for answer, *_ in ANSWERS}) >= 90
    assert 20 <= sum(not right for _, _, right, _ in ANSWERS) <= len(ANSWERS) / 2


@given(
    st.integers(-(10**9), 10**9),
    st.booleans(),
    st.sampled_from(["#### {}", "The answer is: {}.", "${} = \\boxed{{{}}}$"]),
)
def test_every_whole_number_is_read_in_every_form(number, grouped, form):
    written = f"{number:,}" if grouped else str(number)

    assert final_answer(form.format(written, written)) == number


@given(st.text(max_size=60))
def test_every_text_is_read_without_an_error(text):
    final_answer(text)
    is_right_by_peft(text, text)


def test_a_long_answer_without_sense_is_read_in_no_time():
    began = time.process_time()
    for part in ("1", "1,", "1 ", "{", "\\frac{", "1/", "answer is ", "<<", "- "):
        final_answer(part * 2000)

    assert time.process_time() - began < 5


# --- PEFT's rule

REFERENCE = "2 + 3 = 5\n#### {}"


@pytest.mark.parametrize(
    ("answer", "number", "right"),
    [
        ("The answer is: 18", "18", True),
        ("The answer is 18.", "18", True),
        ("The final answer is $18.", "18", True),
        ("#### 18\nAnd so on.", "18", True),
        ("The answer is: 50%", "50", True),
        ("The answer is: 36/2", "18", True),
        ("The answer is: 18.00", "18", True),
        ("The answer is: 2,125", "2,125", True),  # letter by letter
        ("The answer is: 2125", "2,125", False),  # the references that it cannot match
        ("The answer is: 2,125", "2125", False),
        ("The answer is: 18 dollars", "18", False),
        ("The answer is: \\boxed{18}", "18", False),
        ("The answer is: 18/0", "18", False),
        ("The answer is: 1/2/3", "18", False),
        ("\\boxed{18}", "18", False),
        ("#### 18\nThe answer is: 20", "20", True),  # the first kind of mark counts
        ("The answer is: 20\n#### 18", "18", False),
        ("The answer is: sNaN", "18", False),
        ("18", "18", False),
        ("", "18", False),
    ],
)
def test_pefts_rule_is_kept_with_its_faults(answer, number, right):
    assert is_right_by_peft(answer, REFERENCE.format(number)) is right


def pefts_own(prediction, response):
    """The same rule in the steps of PEFT's own: `parse_answer`, `convert_to_decimal` and `get_accuracy`."""
    from decimal import Decimal, InvalidOperation

    def parsed(text):
        text = re.sub(r"[.!?]+$", "", text.strip())
        for mark in ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### "):
            if mark in text:
                return text[text.rindex(mark) + len(mark) :].strip().split("\n")[0].strip(" .!?$%")
        return None

    def number(text):
        try:
            if "/" not in text:
                return float(Decimal(text.strip()))
            above, below = text.split("/")
            return float(Decimal(above.strip()) / Decimal(below.strip()))
        except (InvalidOperation, ZeroDivisionError, ValueError):
            return text

    said, right = parsed(prediction), parsed(response)
    return said is not None and right is not None and number(said) == number(right)


PIECES = st.sampled_from(
    ["The answer is: ", "The answer is ", "#### ", "18", "2,125", "36/2", "1/0", "$", "%", ".", "\n", " ", "x", "-"]
)


@given(st.lists(PIECES, max_size=7).map("".join), st.sampled_from(["18", "2,125", "0.5", "-18", "x"]))
def test_pefts_rule_agrees_with_its_published_steps(answer, number):
    assert is_right_by_peft(answer, REFERENCE.format(number)) == pefts_own(answer, REFERENCE.format(number))
