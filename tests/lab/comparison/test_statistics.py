import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraga.lab.comparison.entries import Entry
from loraga.lab.comparison.results import Curve, Measured, Run
from loraga.lab.comparison.statistics import (
    Pair,
    auto_gap,
    differences,
    paired_intervals,
    rate_range,
    spread,
    steps_to_end,
)


def pair(differences, weights=None):
    weights = np.ones(len(differences)) if weights is None else np.asarray(weights, float)
    return Pair(np.asarray(differences, float), weights)


def interval(*pairs, **options):
    return paired_intervals([pairs], **options)[0]


def run(
    seed=0, rate=1e-3, items=(), losses=(), terms=(), curve=None, status="done", is_auto=False, loss=1.0, score=None
):
    measured = Measured(len(losses) or len(items), loss, score, {}, tuple(items), tuple(losses), tuple(terms))
    return Run("a", "lora", 8, rate, is_auto, seed, status, curve=curve, validation=measured, test=measured)


def entry(*runs, best=1e-3):
    return Entry("a", 8, best, True, runs)


# spread


def test_spread_is_the_mean_and_the_deviation_over_n_minus_one():
    found = spread([1.0, 2.0, 6.0])
    assert (found.count, found.mean) == (3, 3.0)
    assert found.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_one_seed_has_no_deviation_and_no_seed_has_no_spread():
    assert spread([2.0]).std is None
    assert spread([]) is None


# intervals


def slow_interval(pairs, resamples, seed):
    """The same by its definition: row after row, with Python's own generator."""
    generator = random.Random(seed)
    means = []
    for _ in range(resamples):
        drawn = [generator.randrange(len(pairs[0].weights)) for _ in pairs[0].weights]
        of_seeds = []
        for each in pairs:
            total = sum(each.weights[row] * each.differences[row] for row in drawn)
            of_seeds.append(total / sum(each.weights[row] for row in drawn))
        means.append(sum(of_seeds) / len(of_seeds))
    means.sort()
    return means[round(0.025 * resamples)], means[round(0.975 * resamples)]


def test_interval_is_that_of_a_direct_loop():
    generator = np.random.default_rng(3)
    terms = generator.integers(1, 8, 40) ** 3  # rows of very different length, the longer ones better
    pairs = [pair(0.002 * terms + generator.standard_normal(40), terms) for _ in range(3)]
    found = interval(*pairs)
    low, high = slow_interval(pairs, 3000, seed=1)
    width = high - low
    assert abs(found.low - low) < 0.06 * width  # four standard errors of a quantile of 3000 resamples
    assert abs(found.high - high) < 0.06 * width


def test_interval_of_many_rows_is_the_normal_one():
    each = np.random.default_rng(0).standard_normal(2000)
    found = interval(pair(each))
    half = 1.96 * each.std() / math.sqrt(2000)
    assert found.value == pytest.approx(each.mean())
    assert (found.low, found.high) == pytest.approx((each.mean() - half, each.mean() + half), abs=0.05 * half)


def test_interval_of_one_row_that_differs_is_known():
    # of n rows one differs by 1: a resample holds it k times, k binomial, so the ends are 0 and 3 / n at n = 20
    found = interval(pair([1.0] + [0.0] * 19))
    assert (found.value, found.low, found.high) == (0.05, 0.0, 3 / 20)


@settings(max_examples=25, deadline=None)
@given(st.floats(-1, 1), st.integers(1, 40), st.integers(1, 3))
def test_interval_of_a_constant_difference_is_a_point(value, rows, seeds):
    found = interval(*[pair([value] * rows)] * seeds, resamples=50)
    assert (found.value, found.low, found.high) == pytest.approx((value,) * 3)
    assert found.seeds == seeds


def test_interval_covers_the_true_difference_19_times_in_20_where_seeds_share_their_rows():
    # Each row has an effect of its own that all three seeds see; drawn anew in each seed, it would cover 15 in 20.
    generator = np.random.default_rng(0)
    truth, covered = 0.2, 0
    for number in range(600):
        of_row = generator.standard_normal(60)
        pairs = [pair(truth + of_row + 0.5 * generator.standard_normal(60)) for _ in range(3)]
        found = interval(*pairs, resamples=400, seed=number)
        covered += found.low <= truth <= found.high
    assert 0.92 < covered / 600 < 0.975


def test_interval_covers_it_as_well_where_each_seed_has_rows_of_its_own():
    generator = np.random.default_rng(1)
    covered = 0
    for number in range(400):
        found = interval(*[pair(generator.standard_normal(60)) for _ in range(3)], resamples=400, seed=number)
        covered += found.low <= 0 <= found.high
    assert 0.92 < covered / 400 < 0.975


def test_seeds_with_different_numbers_of_rows_count_alike():
    found = interval(pair([1.0] * 3), pair([0.0] * 30), resamples=50)
    assert (found.value, found.low, found.high) == pytest.approx((0.5,) * 3)


def test_intervals_are_the_same_alone_or_together_and_leave_the_random_state_alone():
    generator = np.random.default_rng(0)
    groups = [[pair(generator.standard_normal(20)), pair(generator.standard_normal(20))] for _ in range(3)]
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    together = paired_intervals(groups)
    assert together == paired_intervals(groups)
    for one, group in zip(together, groups, strict=True):
        alone = interval(*group)
        assert (alone.low, alone.high) == pytest.approx((one.low, one.high), abs=1e-12)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert before[1] == random.getstate()
    assert paired_intervals(groups, seed=1) != together


def test_a_difference_is_clear_where_its_interval_leaves_zero_out():
    assert interval(pair([1.0, 2.0, 3.0])).is_clear
    assert interval(pair([-1.0, -2.0, -3.0])).is_clear
    assert not interval(pair([-1.0, 2.0, 3.0])).is_clear


def test_a_difference_is_not_clear_where_one_seed_has_the_other_sign_or_none():
    for other in (-0.1, 0.0):
        found = interval(pair([1.0] * 5), pair([other] * 5))
        assert found.low > 0
        assert not found.is_clear
        assert not interval(pair([-1.0] * 5), pair([-other] * 5)).is_clear
    assert interval(pair([1.0] * 5), pair([0.1] * 5)).is_clear


# differences of runs


def test_scores_are_compared_row_by_row_within_each_seed():
    ours = [run(0, items=(1, 1, 0, 1)), run(1, items=(1, 1, 1, 1))]
    theirs = [run(1, items=(0, 1, 1, 1)), run(0, items=(1, 0, 0, 0)), run(2, items=(0, 0, 0, 0))]
    (found,) = differences([(ours, theirs)], "score", "test")
    assert found.value == pytest.approx((0.5 + 0.25) / 2)
    assert found.seeds == 2


def test_losses_are_weighed_by_their_target_tokens():
    ours, theirs = run(losses=(1.0, 2.0), terms=(9, 1)), run(losses=(1.5, 1.0), terms=(9, 1))
    (found,) = differences([([ours], [theirs])], "loss", "test")
    assert found.value == pytest.approx((9 * -0.5 + 1 * 1.0) / 10)
    assert (found.low, found.high) == pytest.approx((-0.5, 1.0))  # one of the two rows, drawn twice


def test_the_difference_of_losses_is_that_of_their_token_weighted_means():
    generator = np.random.default_rng(0)
    terms = generator.integers(1, 20, 50)
    one, other = generator.random(50), generator.random(50)
    (found,) = differences([([run(losses=one, terms=terms)], [run(losses=other, terms=terms)])], "loss", "test")
    assert found.value == pytest.approx(np.average(one, weights=terms) - np.average(other, weights=terms))


@pytest.mark.parametrize(
    "theirs",
    [
        [],
        [run(5, losses=(1.0, 1.0), terms=(1, 2))],
        [run(0, losses=(1.0, 1.0), terms=(2, 1))],
        [run(0, losses=(1.0,), terms=(1,))],
        [replace(run(0), test=None)],
    ],
    ids=["none", "another seed", "other rows", "fewer rows", "not measured"],
)
def test_runs_that_share_no_seed_and_rows_are_not_compared(theirs):
    ours = [run(0, losses=(1.0, 2.0), terms=(1, 2))]
    same = [run(0, losses=(1.0, 2.0), terms=(1, 2))]
    none, some = differences([(ours, theirs), (ours, same)], "loss", "test")
    assert none is None
    assert some.value == 0


# steps


def curve(end, length=30, every=1):
    steps = tuple(every * (place + 1) for place in range(length))
    return Curve(steps, tuple(end + 1 - place / (length - 1) for place in range(length)))


def test_a_run_reaches_its_own_end_at_its_last_step():
    lora = [run(curve=curve(0.5))]
    assert steps_to_end(lora, lora).steps == (30,)


def test_steps_are_counted_in_training_steps_and_seed_by_seed():
    reference = [run(0, curve=curve(0.5, every=5)), run(1, curve=curve(0.9, every=5))]
    faster = [run(0, curve=curve(0.2, every=5)), run(1, curve=curve(1.2, every=5)), run(2, curve=curve(0.0, every=5))]
    found = steps_to_end(faster, reference)
    # the mean of ten falls by 1/29 a line: 0.3 lower is reached 8.7 lines, so 8, before the last of 30
    assert found.steps == (5 * (30 - 8), None)
    assert found.reached == (110,)
    assert found.total == 150


def test_runs_without_a_curve_have_no_steps():
    assert steps_to_end([run()], [run(curve=curve(0.5))]) is None
    assert steps_to_end([run(curve=curve(0.5))], [run()]) is None


# range of rates

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)


def searched(losses, best, seeds=(0,), **changes):
    runs = [run(seed, rate, loss=loss, score=-loss) for rate, loss in zip(RATES, losses, strict=True) for seed in seeds]
    return entry(
        *(replace(each, **changes.get(f"at_{RATES.index(each.learning_rate)}", {})) for each in runs), best=best
    )


@pytest.mark.parametrize("chosen_by", ["loss", "score"])
@pytest.mark.parametrize(
    ("losses", "expected", "at_edge"),
    [
        ((1.2, 1.01, 1.0, 1.009, 1.1), (2e-3, 8e-3), False),
        ((1.2, 1.011, 1.0, 1.011, 1.1), (4e-3, 4e-3), False),
        ((1.0, 1.0, 1.0, 1.2, 1.1), (1e-3, 4e-3), True),
        ((1.2, 1.2, 1.0, 1.0, 1.0), (4e-3, 16e-3), True),
        ((1.0, 1.2, 1.0, 1.2, 1.0), (4e-3, 4e-3), False),
    ],
)
def test_range_is_what_lies_around_the_best_rate_within_one_percent(losses, expected, at_edge, chosen_by):
    found = rate_range(searched(losses, best=4e-3), chosen_by)
    assert (found.low, found.high) == expected
    assert found.factor == pytest.approx(expected[1] / expected[0])
    assert found.at_edge == at_edge


def test_rates_are_compared_over_the_seeds_that_both_have():
    # seed 1 is harder: against the mean of both seeds, the rate with seed 0 alone would look better than the best
    runs = [run(0, 1e-3, loss=1.0), run(1, 1e-3, loss=2.0), run(0, 2e-3, loss=1.05), run(0, 5e-4, loss=1.05)]
    assert rate_range(entry(*runs), "loss").factor == 1


def test_a_rate_at_which_a_seed_diverged_is_not_a_good_one_but_was_tried():
    diverged = replace(run(1, 2e-3), status="diverged", validation=None)
    runs = [run(0, 5e-4, loss=1.5), run(0, 1e-3), run(1, 1e-3), run(0, 2e-3), diverged]
    found = rate_range(entry(*runs), "loss")
    assert (found.low, found.high, found.at_edge) == (1e-3, 1e-3, False)


def test_a_rate_whose_runs_failed_was_not_tried():
    failed = replace(run(0, 2e-3), status="failed", validation=None)
    assert rate_range(entry(run(0, 5e-4, loss=1.5), run(0, 1e-3), failed), "loss").at_edge


def test_without_a_best_rate_there_is_no_range():
    assert rate_range(entry(run(), best=None), "loss") is None
    assert rate_range(entry(replace(run(), validation=None)), "loss") is None


# auto


def test_the_suggested_rate_is_compared_with_the_best_as_a_factor():
    suggested = [run(0, 2e-3, is_auto=True), run(1, 8e-3, is_auto=True, status="diverged")]
    found = auto_gap(entry(run(0), *suggested))
    assert found.suggested == (2e-3, 8e-3)
    assert found.factor == pytest.approx(4)
    assert found.factor == pytest.approx(statistics.geometric_mean(found.suggested) / 1e-3)
    assert auto_gap(entry(*suggested, best=None)).factor is None
    assert auto_gap(entry(run(0))).suggested == ()
