import math

import pytest

from loraga.lab.comparison.statistics import Difference, Spread
from loraga.lab.comparison.words import Scale, count_text, factor_text, rate_text, seeds_text

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
PERCENT, PLAIN = Scale(is_share=True, digits=1), Scale(is_share=False, digits=4)


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1e-3, "1e-3"), (2.5e-4, "2.5e-4"), (1.25e-5, "1.25e-5"), (0.1, "1e-1"), (1.0, "1e0"), (None, DASH)],
)
def test_rates_are_written_with_their_power_of_ten(rate, text):
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(134_515_008, "135M"), (4_884_480, "4.88M"), (1.2e9, "1.2B"), (1000, "1k"), (7, "7"), (None, DASH)],
)
def test_counts_have_three_digits(count, text):
    assert count_text(count) == text


def test_shares_are_percentages_and_losses_are_not():
    assert PERCENT.spread(Spread(3, 0.5123, 0.0251)).text == "51.2 ± 2.5"
    assert PLAIN.spread(Spread(3, 0.78912, 0.0011)).text == "0.7891 ± 0.0011"


def test_cells_keep_the_numbers_unrounded():
    assert PERCENT.spread(Spread(3, 0.5123, 0.0251)).values == (0.5123, 0.0251, 3)
    assert PLAIN.difference(Difference(0.01234, -0.1, 0.2, (0.0, 0.0, 0.03702))).values == (0.01234, -0.1, 0.2, 3)


def test_one_seed_is_said_and_nothing_is_a_dash():
    assert PERCENT.spread(Spread(1, 0.5, None)).text == "50.0 (1 seed)"
    assert PERCENT.spread(None).text == DASH
    assert PLAIN.difference(None).text == DASH


def test_differences_have_signs_and_a_mark_where_they_are_clear():
    assert PERCENT.difference(Difference(0.012, -0.005, 0.03, (0.012,))).text == f"+1.2 [{MINUS}0.5, +3.0]"
    assert PERCENT.difference(Difference(-0.02, -0.03, -0.01, (-0.02,))).text == f"{MINUS}2.0* [{MINUS}3.0, {MINUS}1.0]"


def test_what_is_not_finite_is_written_as_that():
    assert PLAIN.text(math.nan) == "nan"
    assert PLAIN.text(math.inf) == "inf"


def test_factors_and_seeds():
    assert (factor_text(4.0), factor_text(0.333), factor_text(None)) == ("4x", "0.33x", DASH)
    assert (seeds_text(1), seeds_text(3)) == ("1 seed", "3 seeds")
