"""The picture of a suggested learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import LoragaError

if TYPE_CHECKING:
    from os import PathLike

    from .learning_rate import SuggestedRate

COLOUR, FAINT, ACCENT = "#1f4e79", "#9db7d1", "#c0392b"


def plot_rate(rate: SuggestedRate, path: str | PathLike[str]) -> None:
    """Draws loss against learning rate: both halves, their mean, the suggestion and its error bar.

    Args:
        rate: what to draw.
        path: the picture's file; the ending decides its format.

    Raises:
        LoragaError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LoragaError("the picture needs matplotlib: pip install 'loraga[lab]'") from error
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")  # no pyplot: a library must not open a window
    axes = figure.subplots()
    smallest = rate.curve[0][0]
    axes.axvspan(max(rate.low, smallest), rate.high, color=ACCENT, alpha=0.12, lw=0, label="first minima of the halves")
    for half, style in zip(rate.halves, ("--", ":"), strict=True):
        axes.plot(
            *zip(*half, strict=True),
            style,
            color=FAINT,
            lw=1.2,
            label="one half" if style == "--" else "the other half",
        )
    axes.plot(*zip(*rate.curve, strict=True), "o-", color=COLOUR, ms=4, label="mean of both")
    axes.axhline(rate.loss_before, color="0.6", lw=0.8)
    axes.annotate(
        "before",
        (1, rate.loss_before),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color="0.4",
    )
    axes.plot([rate.value], [rate.loss_at_value], "D", color=ACCENT, ms=7, label=f"suggested: {rate.value:.2g}")
    axes.set(xscale="log", xlabel="learning rate of one step", ylabel="loss of other batches after it")
    fall = rate.loss_before - rate.loss_at_value  # an exploding end would squeeze the valley flat
    axes.set_ylim(rate.loss_at_value - 0.15 * fall, rate.loss_before + 0.35 * fall)
    figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)
