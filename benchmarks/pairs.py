"""Ratios of measurements taken in turn within one process, so that a machine whose speed wanders matters little.

Each round runs every case once, every other round in the opposite order. A ratio is taken within a round.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Ratio:
    """One line of the table: how many times the second thing the first one takes, and what it may take."""

    what: str
    of: str
    values: list[float]
    bound: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def is_kept(self) -> bool:
        return self.bound is None or self.median <= self.bound

    def line(self) -> str:
        spread = f"{min(self.values):.3f} to {max(self.values):.3f} over {len(self.values)}"
        verdict = "" if self.bound is None else f"; bound {self.bound:g}: {'kept' if self.is_kept else 'NOT KEPT'}"
        return f"{self.what} / {self.of}: {self.median:.3f} ({spread}){verdict}"


@dataclass(frozen=True)
class Case:
    """What is measured: `prepare` is not timed and gives what `run` takes."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None

    def seconds(self) -> float:
        prepared = self.prepare()
        gc.collect()
        started = time.perf_counter()
        self.run(prepared)
        return time.perf_counter() - started


def in_turn(cases: Mapping[str, Case], rounds: int, warm_up: bool = False) -> dict[str, list[float]]:
    """Seconds of each case in each round."""
    if warm_up:
        for case in cases.values():
            case.seconds()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in list(cases)[:: -1 if number % 2 else 1]:
            seconds[name].append(cases[name].seconds())
        print(
            f"round {number + 1} of {rounds}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items()),
            flush=True,
        )
    return seconds


def ratio(seconds: Mapping[str, list[float]], what: str, of: str, bound: float | None = None) -> Ratio:
    return Ratio(what, of, [a / b for a, b in zip(seconds[what], seconds[of], strict=True)], bound)


def report(title: str, path: Path | None, settings: Mapping[str, Any], ratios: list[Ratio], **more: Any) -> None:
    """Prints the ratios and writes them as JSON."""
    for one in ratios:
        print(one.line(), flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "title": title,
            "settings": {**settings, "threads": torch.get_num_threads(), "torch": torch.__version__},
            "ratios": [{**asdict(one), "median": one.median, "kept": one.is_kept} for one in ratios],
            **more,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
