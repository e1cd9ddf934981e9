import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loraga.lab.metrics import METRICS, exact_match, final_number, last_number
from loraga.lab.prompts import Prompted, Segment

PUNCTUATION = st.sampled_from(["", ".", "!", ",", " apples.", "%", ".\n", "</s>"])
SPACE = st.text(alphabet=" \n\t", max_size=3)


@given(st.text(max_size=8), SPACE, SPACE)
def test_space_around_an_answer_does_not_count(text, before, after):
    assert exact_match(before + text + after, text)


@given(st.text(max_size=4), st.text(max_size=4))
def test_another_text_is_no_exact_match(one, other):
    assert exact_match(one, other) == (one.strip() == other.strip())


@pytest.mark.parametrize(("answer", "target"), [("18.", "18"), ("a 18", "18"), ("1 8", "18"), ("A", "a"), ("", "18")])
def test_an_exact_match_is_nothing_less_than_the_target(answer, target):
    assert not exact_match(answer, target)


@given(st.integers(-(10**12), 10**12), st.booleans(), st.sampled_from(["", "12 + 30 = ", "so $", "#### "]), PUNCTUATION)
def test_the_last_number_is_the_one_that_was_written(number, grouped, before, after):
    written = f"{number:,}" if grouped else str(number)

    assert last_number(before + written + after) == number


@given(st.integers(-(10**6), 10**6), st.integers(0, 9999))
def test_decimals_are_read(whole, decimals):
    assert last_number(f"about {whole}.{decimals:04d}.") == pytest.approx(
        (abs(whole) + decimals / 10_000) * (-1 if str(whole).startswith("-") else 1), rel=1e-12
    )


@given(
    st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=6), st.sampled_from([" ", ", ", "; ", " and ", "\n"])
)
def test_of_several_numbers_the_last_one_counts(numbers, between):
    assert last_number(between.join(map(str, numbers))) == numbers[-1]


@given(st.integers(0, 10**5), st.integers(0, 10**7))
def test_a_comma_groups_three_digits_and_no_others(first, second):
    assume(not (0 < first < 1000 and len(str(second)) == 3))

    assert last_number(f"{first},{second}") == second


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("is 18.", 18),
        ("1,200", 1200),
        ("$1,234,567.50!", 1234567.5),
        ("100,2000", 2000),  # a list; not 100,200 and 0
        ("100,200,3000", 3000),
        ("-7", -7),
        ("it fell by -1,200.", -1200),
        ("x = -0.5", -0.5),
        ("+3", 3),
        (".5", 0.5),
        ("-.5", -0.5),
        ("10-3", 3),  # a difference or a range
        ("10 - 3", 3),
        ("10 -3", -3),
        ("6*7=42", 42),
    ],
)
def test_numbers_are_read_as_people_write_them(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize("text", ["", "no number", "- . , +", "...", "x²"])
def test_a_text_without_a_number_has_none(text):
    assert last_number(text) is None


@given(st.text(alphabet="ab .,-+", max_size=6), st.text(alphabet="ab .,-+", max_size=6))
def test_where_the_answer_has_no_number_nothing_is_right(answer, target):
    assert not final_number(answer, target)


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("The answer is 18.", "5 + 13 = 18\n#### 18", True),
        ("1,200", "1200.0", True),
        ("18 of 20", "18", False),
        ("-18", "18", False),
        ("18", "no number", False),
    ],
)
def test_final_numbers_are_compared_as_numbers(answer, target, right):
    assert final_number(answer, target) is right


def row(target):
    return Prompted((Segment("question", False), Segment(target, True)), from_template=False)


def test_metrics_are_found_by_name_and_none_judges_nothing():
    assert {name for name, metric in METRICS.items() if metric.judged_by == "answers"} == {
        name for name, metric in METRICS.items() if metric.judge is not None
    }
    assert METRICS["none"].judged_by == "nothing"
    assert [METRICS["exact_match"].judge(said, row("18")) for said in ("18", "18.")] == [1.0, 0.0]
    assert [METRICS["final_number"].judge(said, row("is 18")) for said in ("18.", "20")] == [1.0, 0.0]
    assert [METRICS["gsm8k"].judge(said, row("#### 18")) for said in ("\\boxed{18}", "#### 20")] == [1.0, 0.0]
    assert all(metric.what for metric in METRICS.values())


def test_pefts_rule_stands_beside_the_corrected_one_also_for_several_answers():
    lines = [
        {"answer": "The answer is 18.", "target": "#### 18"},
        {"answer": "18", "target": "#### 18"},
        {"answers": ["#### 5", "\\boxed{5}", "#### 5", "#### 6"], "target": "#### 5"},
    ]

    assert METRICS["gsm8k"].figures(lines) == {"peft_rule": pytest.approx((1 + 0 + 0.5) / 3)}


def said_and_right(pairs):
    return [{"answer": said, "target": right} for said, right in pairs]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_matthews_correlation_of_two_classes_is_pearsons_of_their_indicators(pairs):
    found = METRICS["label_word"].figures(said_and_right((f"{said}", f"{right}") for said, right in pairs))["matthews"]

    said, right = np.array(pairs, dtype=float).T
    constant = said.std() == 0 or right.std() == 0
    assert found == pytest.approx(0.0 if constant else np.corrcoef(said, right)[0, 1], abs=1e-12)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=2, max_size=30))
def test_matthews_correlation_of_more_classes_is_that_of_their_indicators_together(pairs):
    said, right = (
        np.array([[each[side] == name for name in "abcd"] for each in pairs], dtype=float) for side in (0, 1)
    )
    said, right = said - said.mean(axis=0), right - right.mean(axis=0)
    product = np.sqrt((said**2).sum() * (right**2).sum())

    found = METRICS["label_word"].figures(said_and_right(pairs))["matthews"]

    assert found == pytest.approx((said * right).sum() / product if product > 1e-9 else 0.0, abs=1e-9)
