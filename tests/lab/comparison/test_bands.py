from dataclasses import replace

import pytest

from loraga.lab.comparison.bands import band_of
from loraga.lab.comparison.results import Curve
from tests.lab.comparison.synthetic import synthetic_results

RUN = synthetic_results(rows=8, steps=12, seeds=(0,)).runs[0]


def run(loss, steps):
    return replace(RUN, curve=Curve(tuple(steps), tuple(loss + 0.1 * place for place in range(len(steps)))))


def test_a_band_is_lowest_mean_and_highest_over_the_seeds():
    band = band_of([run(1.0, range(1, 13)), run(2.0, range(1, 13)), run(4.5, range(1, 13))])
    assert (band.seeds, band.steps) == (3, [10, 11, 12])
    assert band.low == pytest.approx([1.45, 1.55, 1.65])
    assert band.mean == pytest.approx([2.95, 3.05, 3.15])
    assert band.high == pytest.approx([4.95, 5.05, 5.15])


def test_a_band_is_over_the_steps_that_all_seeds_have():
    assert band_of([run(1.0, range(5, 65, 5)), run(2.0, range(5, 70, 5))]).steps == [50, 55, 60]


def test_seeds_without_a_step_in_common_have_no_band():
    assert band_of([run(1.0, range(1, 4)), run(2.0, range(1, 13))]) is None


def test_the_ends_of_a_band_from_a_step_on():
    band = band_of([run(1.0, range(1, 13)), run(2.0, range(1, 13))])
    assert band.after(11.5) == pytest.approx([1.65, 2.65])


def test_runs_without_a_curve_have_no_band():
    bare = [replace(RUN, curve=None), replace(RUN, curve=Curve((), ()))]
    assert band_of(bare) is None
    assert band_of([*bare, run(1.0, range(1, 13))]).seeds == 1
