"""Loss curves: smoothing them, and reading off how soon one run got to where another ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 10  # steps


def running_mean(losses: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of each `window` steps in a row.

    Args:
        losses: one a step.
        window: how many steps; a shorter run is one window.

    Returns:
        max(1, len(losses) - window + 1) means; the first belongs to step `window`.
    """
    window = min(window, len(losses))
    return [sum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]


def final_loss(losses: Sequence[float], window: int = WINDOW) -> float:
    """The mean of the last `window` steps."""
    return running_mean(losses, window)[-1]


def steps_until(losses: Sequence[float], target: float, window: int = WINDOW) -> int | None:
    """The first step at which the mean of the last `window` steps is at most the target.

    Args:
        losses: one a step.
        target: the loss to reach.
        window: how many steps the mean is taken over.

    Returns:
        The step, counted from 1, or None if the run never gets there.
    """
    window = min(window, len(losses))
    for step, mean in enumerate(running_mean(losses, window), start=window):
        if mean <= target:
            return step
    return None
