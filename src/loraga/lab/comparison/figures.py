"""The figures of a comparison: loss curves, score against learning rate, score against rank.

A variant has the same colour, dash and marker in all of them; the reference is black.
"""

from __future__ import annotations

import io
import statistics
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..curves import WINDOW
from ..figures import DOTS_PER_INCH
from .bands import band_of
from .entries import entries_of, headline, shown_rows, values
from .styles import Dash, Style, handle, plain, styles_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes

    from .entries import Entry
    from .results import Results, Run

WIDTH, HEIGHT = 10.0, 5.5  # inches
OPACITY, OPACITY_TOGETHER = 0.15, 0.7  # of a band; of all together at most
ASIDE = 1.012  # factor between the points of two variants at one rate
LEVEL: Dash = ":"  # of a variant without a rank
DIVERGED = r"$\infty$"
WIDE = 5.0  # a range of losses above which their axis is logarithmic
SALT = "loraga"  # of the names within an SVG, so that the same results give the same file


@dataclass(frozen=True)
class Picture:
    """A figure with the name of its files and what it shows, for those who cannot see it."""

    name: str
    title: str
    figure: Figure


def pictures_of(results: Results) -> tuple[Picture, ...]:
    """All figures that there is something to show in.

    Args:
        results: of the comparison.

    Returns:
        For each rank the loss curves and the score by learning rate; the score by rank if a variant has several.
    """
    entries = entries_of(results)
    found = []
    ranks: list[int | None] = [*_ranks(entries)]
    for rank in ranks or [None]:
        there = [entry for entry in entries if entry.rank in (rank, None)]
        end, of = ("", "") if rank is None else (f"_rank{rank}", f", rank {rank}")
        if any(band_of(entry.best) for entry in there):
            title = f"Training loss at each method's best learning rate{of}"
            found.append(Picture(f"loss{end}", title, draw_losses(results, there, title)))
        if any(_points(results, entry.runs) for entry in there):
            title = f"{_measure(results)} by learning rate{of}"
            found.append(Picture(f"rates{end}", title, draw_rates(results, there, title)))
    with_rank = Counter(entry.variant for entry in entries if entry.rank is not None and _points(results, entry.best))
    if any(count > 1 for count in with_rank.values()):
        title = f"{_measure(results)} by rank, at each method's best learning rate"
        found.append(Picture("ranks", title, draw_ranks(results, entries, title)))
    return tuple(found)


def draw_losses(results: Results, entries: Sequence[Entry], title: str) -> Figure:
    """Training loss over steps, each entry at its best rate: mean over seeds with a band; the end enlarged beside it.

    Args:
        results: of the comparison.
        entries: those to draw; one without a finished run is left out.
        title: above the picture.

    Returns:
        The figure.
    """
    figure = _figure(title)
    whole, end = figure.subplots(1, 2)
    styles = styles_of(results)
    drawn = [(entry, band) for entry in entries if (band := band_of(entry.best)) is not None]
    bands = [band for _, band in drawn]
    opacity = min(OPACITY, OPACITY_TOGETHER / len(bands))
    for entry, band in drawn:
        style = styles[entry.variant]
        for axes in (whole, end):
            axes.plot(band.steps, band.mean, style.dash, color=style.colour, linewidth=1.8)
            axes.fill_between(band.steps, band.low, band.high, color=style.colour, alpha=opacity, linewidth=0)
    last = max(band.steps[-1] for band in bands)
    late = [each for band in bands for each in band.after(last / 2)]
    end.set_xlim(last / 2, last + 0.02 * last)
    if late:
        margin = 0.05 * (max(late) - min(late)) or 0.1
        end.set_ylim(min(late) - margin, max(late) + margin)
    _logarithmic_if_wide(whole, [each for band in bands for each in band.mean])
    whole.set_ylabel("training loss (nats per target token)")
    for axes, part in {whole: "whole training", end: "second half, enlarged"}.items():
        axes.set_title(part, fontsize="medium")
        axes.set_xlabel("training step")
        axes.grid(alpha=0.3)
    handles = [
        handle(styles[entry.variant], f"{entry.variant} ({band.seeds})", has_marker=False) for entry, band in drawn
    ]
    _legend(figure, handles, f"mean of {WINDOW} logging steps\nband: lowest to highest seed\n(n): seeds")
    return figure


def draw_rates(results: Results, entries: Sequence[Entry], title: str) -> Figure:
    """Score, or loss where nothing was judged, by learning rate.

    Args:
        results: of the comparison.
        entries: those to draw.
        title: above the picture.

    Returns:
        The figure: a point a seed, a line through the means; the best rate ringed, suggested rates as crosses, diverged
        runs at the edge.
    """
    figure = _figure(title)
    axes = figure.subplots()
    styles, handles = styles_of(results), []
    lost = axes.get_xaxis_transform()  # x is a rate, y a part of the axis
    worst = 0.015 if headline(results) == "score" else 0.985
    for number, entry in enumerate(entries):
        style = styles[entry.variant]
        found = _points(results, [run for run in entry.runs if not run.is_auto])
        suggested = _points(results, entry.auto)
        beside = ASIDE ** (number - (len(entries) - 1) / 2)
        means = {rate: [statistics.fmean(found[rate])] for rate in sorted(found)}
        best = {rate: mean for rate, mean in means.items() if rate == entry.best_rate}
        away = [run.learning_rate for run in entry.runs if run.status == "diverged" and run.learning_rate]
        draw = partial(axes.plot, color=style.colour)
        draw(*_apart(means), style.dash, linewidth=1.5)
        draw(*_apart({rate * beside: each for rate, each in found.items()}), style.marker, markersize=4, alpha=0.7)
        draw(*_apart(suggested), "x", markersize=9, markeredgewidth=2)
        draw(*_apart(best), "o", markersize=13, fillstyle="none", markeredgewidth=1.5)
        draw(
            [rate * beside for rate in away],
            [worst] * len(away),
            marker=DIVERGED,
            linestyle="",
            markersize=11,
            transform=lost,
        )
        if found or suggested:
            handles.append(handle(style, entry.variant))
    axes.set_xscale("log")
    if headline(results) == "loss":
        _logarithmic_if_wide(
            axes, [each for entry in entries for some in _points(results, entry.runs).values() for each in some]
        )
    axes.set_xlabel("peak learning rate (logarithmic)")
    axes.set_ylabel(_axis(results))
    axes.grid(alpha=0.3)
    _legend(figure, handles + _marks(results, entries), "points: seeds, side by side\nline: their mean")
    return figure


def draw_ranks(results: Results, entries: Sequence[Entry], title: str) -> Figure:
    """Score, or loss where nothing was judged, by rank, each entry at its best rate.

    Args:
        results: of the comparison.
        entries: all; a variant is drawn if it was run at several ranks, or as a level line if it has none.
        title: above the picture.

    Returns:
        The figure: a point a seed, a line through the means.
    """
    figure = _figure(title)
    axes = figure.subplots()
    styles, handles, where = styles_of(results), [], shown_rows(results)
    for variant in results.variants:
        style = styles[variant]
        found = {
            entry.rank: [_scaled(results, each) for each in values(entry.best, headline(results), where).values()]
            for entry in entries
            if entry.variant == variant and entry.best
        }
        level = found.pop(None, [])
        ranks = {rank: found[rank] for rank in sorted(filter(None, found)) if found[rank]}
        if level:
            axes.axhline(statistics.fmean(level), linestyle=LEVEL, color=style.colour, linewidth=1.5)
            handles.append(handle(Style(style.colour, LEVEL, ""), f"{variant} (no rank)", has_marker=False))
        if len(ranks) > 1:
            means = {rank: [statistics.fmean(each)] for rank, each in ranks.items()}
            axes.plot(*_apart(means), style.dash, color=style.colour, linewidth=1.5)
            axes.plot(*_apart(ranks), style.marker, color=style.colour, markersize=6, alpha=0.7)
            handles.append(handle(style, variant))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_ranks(entries)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("rank (logarithmic)")
    axes.set_ylabel(_axis(results))
    axes.grid(alpha=0.3)
    _legend(figure, handles, "points: seeds\nline: their mean")
    return figure


def picture_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as the content of a file; the same figure gives the same bytes.

    Args:
        figure: drawn.
        kind: "png" or "svg".

    Returns:
        The file's content.
    """
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": SALT}):
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _figure(title: str) -> Figure:
    # A Figure of its own, not pyplot's: no global state, and no display is looked for.
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(plain(title))
    return figure


def _marks(results: Results, entries: Sequence[Entry]) -> list[Line2D]:
    """What the marks beside the lines are, those that there are."""
    mark = partial(Line2D, [], [], color="grey", linestyle="")
    found = [mark(marker="o", fillstyle="none", markersize=11, label="best, chosen on\nvalidation rows")]
    if any(_points(results, entry.auto) for entry in entries):
        found.append(mark(marker="x", markersize=8, markeredgewidth=2, label="auto: suggested"))
    if any(run.status == "diverged" for entry in entries for run in entry.runs):
        found.append(mark(marker=DIVERGED, markersize=11, label="diverged, at the edge"))
    return found


def _legend(figure: Figure, handles: Sequence[Line2D], title: str) -> None:
    figure.legend(handles=handles, title=title, loc="outside right upper", frameon=False, fontsize="small",
                  title_fontsize="small", alignment="left", handlelength=3)  # fmt: skip


def _logarithmic_if_wide(axes: Axes, losses: Sequence[float]) -> None:
    if losses and min(losses) > 0 and max(losses) / min(losses) > WIDE:
        axes.set_yscale("log")


def _ranks(entries: Iterable[Entry]) -> list[int]:
    return sorted({entry.rank for entry in entries if entry.rank is not None})


def _points(results: Results, runs: Iterable[Run]) -> dict[float, list[float]]:
    """The shown quantity of finished runs, by learning rate."""
    found: dict[float, list[float]] = {}
    for run in runs:
        if run.learning_rate:
            for value in values([run], headline(results), shown_rows(results)).values():
                found.setdefault(run.learning_rate, []).append(_scaled(results, value))
    return found


def _apart(found: Mapping[float, Sequence[float]] | Mapping[int, Sequence[float]]) -> tuple[list[float], list[float]]:
    """The points' x and y."""
    points = [(x, y) for x, each in found.items() for y in each]
    return [x for x, _ in points], [y for _, y in points]


def _scaled(results: Results, value: float) -> float:
    is_percent = results.is_share and headline(results) == "score"
    return 100 * value if is_percent else value


def _measure(results: Results) -> str:
    where = shown_rows(results)
    return f"{where.capitalize()} {results.score if headline(results) == 'score' else 'loss'}"


def _axis(results: Results) -> str:
    unit = (" (%)" if results.is_share else "") if headline(results) == "score" else " (nats per target token)"
    return plain(f"{_measure(results)}{unit}")
