"""The first minimum of a loss along a line, in factors of 2: arithmetic on numbers, no model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Losses = tuple[float, ...]  # one loss a curve, all measured at the same rate

RISE = 0.05  # a rise of less than this part of the fall so far is a wiggle, not the end of a valley
NOISE = 1e-3  # and so is one of less than this part of the loss itself: bfloat16 keeps no more


@dataclass(frozen=True)
class Valley:
    """Where a curve, read from its smallest rate on, first falls and rises again.

    Attributes:
        index: position of the lowest loss before the first rise; None if no loss is below the one at rate 0.
        risen: whether a loss after it, or after rate 0, is clearly higher.
    """

    index: int | None
    risen: bool


def first_valley(losses: Sequence[float], before: float) -> Valley:
    """Finds the first minimum of a curve; what lies beyond the first clear rise is not looked at.

    Args:
        losses: the curve by rising rate; what is not finite counts as risen.
        before: the loss at rate 0, finite.

    Returns:
        The valley.
    """
    index, lowest = None, before
    for position, loss in enumerate(losses):
        if loss < lowest:
            index, lowest = position, loss
        elif not loss <= lowest + max(RISE * (before - lowest), NOISE * abs(before)):  # NaN has risen too
            return Valley(index, risen=True)
    return Valley(index, risen=False)


def walk(evaluate: Callable[[float], Losses], before: Losses, start: float, limit: int) -> list[tuple[float, Losses]]:
    """Measures curves at the same rates, start * 2^k, until each shows its first valley from both sides.

    Goes up until every curve has risen, then down until every curve begins on its first slope.

    Args:
        evaluate: the losses at a rate, one a curve.
        before: the losses at rate 0.
        start: the first rate.
        limit: rates to measure at most.

    Returns:
        (rate, losses) by rising rate; fewer curves than all may be bracketed where the limit was reached.
    """
    measured = [(start, evaluate(start))]

    def curves() -> list[tuple[list[float], float]]:
        return [([losses[i] for _, losses in measured], loss) for i, loss in enumerate(before)]

    while len(measured) < limit and not all(first_valley(curve, loss).risen for curve, loss in curves()):
        rate = measured[-1][0] * 2
        measured.append((rate, evaluate(rate)))
    while len(measured) < limit and any(first_valley(curve, loss).index in (None, 0) for curve, loss in curves()):
        rate = measured[0][0] / 2
        measured.insert(0, (rate, evaluate(rate)))
    return measured


def refined_minimum(rates: Sequence[float], losses: Sequence[float], index: int) -> float:
    """Lowest point of the parabola in the rate through a grid's minimum and its two neighbours.

    In the rate and not in its logarithm: to second order the loss is quadratic in the rate, and of a
    quadratic this is the exact minimiser, where a parabola in log2(rate) is up to 20 % too low.

    Args:
        rates: rising rates.
        losses: their losses.
        index: position of a loss that neither neighbour is below.

    Returns:
        A rate between the neighbours; the grid's own where it lies at an end or a neighbour is not finite.
    """
    if not 0 < index < len(rates) - 1:
        return rates[index]
    (x0, x1, x2), (y0, y1, y2) = rates[index - 1 : index + 2], losses[index - 1 : index + 2]
    left, right = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
    if not math.isfinite(left - right) or left == right:
        return x1
    return x1 - ((x1 - x0) * left - (x1 - x2) * right) / (2 * (left - right))
