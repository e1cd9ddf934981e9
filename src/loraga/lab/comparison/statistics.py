"""What a comparison's numbers say: spread over seeds, paired intervals, how soon and how widely a variant is good.

Pure functions of finished runs. An interval covers the draw of the test rows; the few seeds are no sample that an
interval could be made from, so their spread is given beside it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..curves import WINDOW, final_loss, steps_until
from .entries import measured, values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from .entries import Entry, Quantity, Where
    from .results import Measured, Run

RESAMPLES = 10_000
CONFIDENCE = 0.95
NEAR = 0.01  # relative; two results that close are taken as equally good
ROUNDING = 1e-9  # so that 0.99 is within 1 % of 1
CHUNK = 500  # resamples at a time


@dataclass(frozen=True)
class Spread:
    """Values over seeds: how many, their mean, and their standard deviation (n - 1), which one value does not have."""

    count: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Pair:
    """Two runs of one seed on the same rows: each row's difference, and what it weighs."""

    differences: NDArray[np.float64]  # (rows,)
    weights: NDArray[np.float64]  # (rows,)


@dataclass(frozen=True)
class Difference:
    """A difference with its interval.

    Attributes:
        value: mean over rows, then over seeds.
        low: lower end of the 95 % interval.
        high: its upper end.
        by_seed: mean over rows, a seed each.
    """

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def seeds(self) -> int:
        """How many pairs of runs."""
        return len(self.by_seed)

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside the interval, on the same side of the difference in every seed."""
        return (self.low > 0 and min(self.by_seed) > 0) or (self.high < 0 and max(self.by_seed) < 0)


@dataclass(frozen=True)
class StepsToEnd:
    """When each seed's training loss was down to where the reference's ended.

    Attributes:
        steps: by seed; None where it never was.
        total: training steps of the longest of these runs.
    """

    steps: tuple[int | None, ...]
    total: int

    @property
    def reached(self) -> tuple[int, ...]:
        """The steps of the seeds that got there."""
        return tuple(step for step in self.steps if step is not None)


@dataclass(frozen=True)
class RateRange:
    """The learning rates around the best one that are as good within 1 %.

    Attributes:
        low: the lowest.
        high: the highest.
        at_edge: whether one of them is the lowest or the highest that was tried, so that the range may go on.
    """

    low: float
    high: float
    at_edge: bool

    @property
    def factor(self) -> float:
        """High over low; 1 where the best rate alone is that good."""
        return self.high / self.low


@dataclass(frozen=True)
class AutoGap:
    """How far suggested learning rates were from the searched best.

    Attributes:
        suggested: the rates, by seed; those of diverged runs are among them.
        factor: their geometric mean over the searched best rate; None if there is none of the two.
    """

    suggested: tuple[float, ...]
    factor: float | None


def spread(numbers: Iterable[float]) -> Spread | None:
    """Mean and standard deviation; None of no values."""
    each = list(numbers)
    if not each:
        return None
    return Spread(len(each), statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else None)


def paired_intervals(groups: Sequence[Sequence[Pair]], resamples: int = RESAMPLES, seed: int = 0) -> list[Difference]:
    """Mean differences with their percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13).

    A resample draws as many rows as there are, with replacement, and takes both runs' values of a row that is drawn.
    Where seeds have equally many rows it draws once for all of them: of a data set the test rows are the same rows in
    every seed, and drawing anew in each would count a row that was seen three times as three rows, which makes the
    interval too narrow. Where they are other rows in each, drawing once is right as well.

    Args:
        groups: the pairs of each difference: one a seed, at least one.
        resamples: how many.
        seed: of the generators.

    Returns:
        For each group its difference (mean over rows by weight, then over seeds) and the interval.
    """
    flat = [(place, pair) for place, pairs in enumerate(groups) for pair in pairs]
    totals: NDArray[np.float64] = np.zeros((len(groups), resamples))
    for rows in dict.fromkeys(len(pair.weights) for _, pair in flat):
        together = [(place, pair) for place, pair in flat if len(pair.weights) == rows]
        weights = np.stack([pair.weights for _, pair in together], axis=1)  # (rows, pairs)
        weighted = weights * np.stack([pair.differences for _, pair in together], axis=1)
        generator = np.random.default_rng([seed, rows])
        for start in range(0, resamples, CHUNK):
            counts = _counts(generator, rows, min(CHUNK, resamples - start))
            means = counts @ weighted / (counts @ weights)  # (resamples of the chunk, pairs)
            for (place, _), column in zip(together, means.T, strict=True):
                totals[place, start : start + len(column)] += column / len(groups[place])
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(totals, [tail, 1 - tail], axis=1).T.tolist() if groups else []
    return [
        Difference(statistics.fmean(by_seed), low, high, by_seed)
        for by_seed, (low, high) in zip(map(_means, groups), ends, strict=True)
    ]


def differences(
    comparisons: Iterable[tuple[Sequence[Run], Sequence[Run]]], quantity: Quantity, where: Where
) -> list[Difference | None]:
    """The differences between finished runs of two kinds, with their intervals.

    Args:
        comparisons: ours and theirs.
        quantity: a score counts each row alike; a loss weighs it by its target tokens.
        where: the rows.

    Returns:
        For each, ours minus theirs over the seeds that both have; None if there is no such seed.
    """
    groups = [_pairs(ours, theirs, quantity, where) for ours, theirs in comparisons]
    found = iter(paired_intervals([pairs for pairs in groups if pairs]))
    return [next(found) if pairs else None for pairs in groups]


def steps_to_end(ours: Sequence[Run], reference: Sequence[Run]) -> StepsToEnd | None:
    """When a variant's training loss was down to where the reference's ended, seed by seed.

    Runs of one seed see the same batches, so the noise of the batches is the same in both. Losses are running means of
    ten logging steps.

    Args:
        ours: finished runs of the variant at its best rate.
        reference: finished runs of the reference at its own.

    Returns:
        The steps; None if no seed has both curves.
    """
    ends = {run.seed: final_loss(run.curve.losses, WINDOW) for run in reference if run.curve and run.curve.losses}
    steps: list[int | None] = []
    total = 0
    for run in ours:
        if run.curve is None or not run.curve.losses or run.seed not in ends:
            continue
        at = steps_until(run.curve.losses, ends[run.seed], WINDOW)
        steps.append(None if at is None else run.curve.steps[at - 1])
        total = max(total, run.curve.steps[-1])
    return StepsToEnd(tuple(steps), total) if steps else None


def rate_range(entry: Entry, chosen_by: Quantity) -> RateRange | None:
    """How far below and above the best rate a variant stays within 1 % of its best, on validation rows.

    A rate is compared with the best one over the seeds that both have, and is out if a run at it diverged.

    Args:
        entry: the variant.
        chosen_by: what its best rate was chosen by.

    Returns:
        The range; None if there is no best rate, or nothing was measured at it.
    """
    best = entry.best_rate
    if best is None or not values(entry.at(best), chosen_by, "validation"):
        return None
    tried = [rate for rate in entry.tried if rate == best or _comparable(entry, rate, best, chosen_by)]
    low = high = tried.index(best)
    while low > 0 and _is_near(entry, tried[low - 1], best, chosen_by):
        low -= 1
    while high < len(tried) - 1 and _is_near(entry, tried[high + 1], best, chosen_by):
        high += 1
    return RateRange(tried[low], tried[high], at_edge=low == 0 or high == len(tried) - 1)


def auto_gap(entry: Entry) -> AutoGap:
    """How far the suggested learning rates of a variant were from the searched best."""
    suggested = tuple(run.learning_rate for run in entry.auto if run.learning_rate)
    if not suggested or entry.best_rate is None:
        return AutoGap(suggested, None)
    return AutoGap(suggested, geometric_mean(suggested) / entry.best_rate)


def geometric_mean(numbers: Sequence[float]) -> float:
    """Of positive numbers, at least one."""
    return math.exp(statistics.fmean(math.log(each) for each in numbers))


def _counts(generator: np.random.Generator, rows: int, size: int) -> NDArray[np.float64]:
    """How often each row is drawn in each of so many resamples: (size, rows)."""
    drawn = generator.integers(rows, size=(size, rows))
    drawn += rows * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def _means(pairs: Sequence[Pair]) -> tuple[float, ...]:
    return tuple(float(pair.differences @ pair.weights / pair.weights.sum()) for pair in pairs)


def _pairs(ours: Iterable[Run], theirs: Iterable[Run], quantity: Quantity, where: Where) -> list[Pair]:
    """A pair for each seed that both have, measured on the same rows."""
    other = {run.seed: measured(run, where) for run in theirs}
    pairs = (_pair(measured(run, where), other.get(run.seed), quantity) for run in ours)
    return [pair for pair in pairs if pair is not None]


def _pair(ours: Measured | None, theirs: Measured | None, quantity: Quantity) -> Pair | None:
    """Row by row; None where one was not measured, or not on the same rows."""
    if ours is None or theirs is None:
        return None
    if quantity == "score":
        first, second = ours.items, theirs.items
        weights: Sequence[float] = [1.0] * len(first)
    else:
        first, second, weights = ours.losses, theirs.losses, ours.terms
        if ours.terms != theirs.terms:
            return None
    if not first or len(first) != len(second):
        return None
    return Pair(np.subtract(first, second, dtype=np.float64), np.asarray(weights, dtype=np.float64))


def _comparable(entry: Entry, rate: float, best: float, quantity: Quantity) -> bool:
    """Whether it can be said how a rate compares with the best one."""
    here, there = (values(entry.at(each), quantity, "validation") for each in (rate, best))
    return any(run.status == "diverged" for run in entry.at(rate)) or not here.keys().isdisjoint(there)


def _is_near(entry: Entry, rate: float, best: float, quantity: Quantity) -> bool:
    here, there = (values(entry.at(each), quantity, "validation") for each in (rate, best))
    seeds = here.keys() & there.keys()
    if not seeds or any(run.status == "diverged" for run in entry.at(rate)):
        return False
    mine, target = (statistics.fmean(each[seed] for seed in seeds) for each in (here, there))
    worse = target - mine if quantity == "score" else mine - target
    return worse <= NEAR * abs(target) * (1 + ROUNDING)
