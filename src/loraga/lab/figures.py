"""Pictures of training runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .curves import WINDOW, running_mean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WIDTH, HEIGHT = 8.0, 5.0  # inches
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Curve:
    """One run in a picture: its label, its losses, at which steps (by default one a step), and how it is drawn."""

    label: str
    losses: Sequence[float]
    colour: str
    dashed: bool = False
    steps: Sequence[int] | None = None


def draw_losses(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Draws training losses over steps: each run as a running mean, with its single steps faint behind it.

    Args:
        curves: at least one run.
        path: the PNG file to write.
        title: above the picture.
    """
    # A Figure of its own, not pyplot's: no global state, and no display is looked for.
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    means = []
    for curve in curves:
        steps = range(1, len(curve.losses) + 1) if curve.steps is None else curve.steps
        smooth = running_mean(curve.losses)
        means += smooth
        style = "--" if curve.dashed else "-"
        axes.plot(steps, curve.losses, style, color=curve.colour, alpha=0.2, linewidth=0.8)
        axes.plot(steps[-len(smooth) :], smooth, style, color=curve.colour, linewidth=2, label=curve.label)
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    margin = 0.15 * (high - low) or 1.0
    axes.set_ylim(max(0.0, low - margin), high + margin)  # single steps of the first few may leave the picture
    axes.set_xlabel("training step")
    axes.set_ylabel("training loss (nats per answer token)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(title=f"mean of {WINDOW} steps", frameon=False)
    figure.savefig(path)
