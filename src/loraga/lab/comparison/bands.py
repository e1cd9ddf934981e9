"""Training losses over the seeds of a variant: at each step the lowest, the mean and the highest."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..curves import running_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .results import Run


@dataclass(frozen=True)
class Band:
    """Losses over steps: how many seeds, and at each step the lowest, the mean and the highest of them."""

    seeds: int
    steps: Sequence[int]
    low: Sequence[float]
    mean: Sequence[float]
    high: Sequence[float]

    def after(self, step: float) -> list[float]:
        """The ends of the band from a step on, where they are finite."""
        pairs = zip(self.steps, zip(self.low, self.high, strict=True), strict=True)
        return [each for at, ends in pairs if at >= step for each in ends if math.isfinite(each)]


def band_of(runs: Iterable[Run]) -> Band | None:
    """The band of some runs' losses, as running means of ten logging steps, at the steps that all of them have.

    Args:
        runs: finished ones; those without a curve are left out.

    Returns:
        The band; None if no run has a curve, or they have no step in common.
    """
    by_step = [_means(run) for run in runs if run.curve is not None and run.curve.losses]
    if not by_step:
        return None
    steps = sorted(set(by_step[0]).intersection(*by_step[1:]))
    if not steps:
        return None
    at = [[each[step] for each in by_step] for step in steps]
    return Band(
        len(by_step),
        steps,
        [min(each) for each in at],
        [statistics.fmean(each) for each in at],
        [max(each) for each in at],
    )


def _means(run: Run) -> dict[int, float]:
    """Running means by step."""
    if run.curve is None:
        return {}
    means = running_mean(run.curve.losses)
    return dict(zip(run.curve.steps[-len(means) :], means, strict=True))
