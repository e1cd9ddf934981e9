"""Where the time of a start goes: the seconds spent in each of its parts, over the yardstick's."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from loraga import estimate, initialization

# what stands for each part: an attribute that is timed, by the class or module that holds it
PARTS = {
    "merging each call": (estimate._Sums, "receive"),
    "factoring the sums": (estimate._Sums, "finish"),
    "comparing the outputs before and after": (initialization, "model_outputs"),
    "the report": (initialization.LayerStart, "report"),
}
BASE = "the base model"  # all that is in no other part: its forward and backward passes, without adapters


@contextmanager
def timed_parts() -> Iterator[Counter[str]]:
    """Counts the seconds spent in each part while the block runs."""
    seconds: Counter[str] = Counter()

    def timed(name, function):
        def run(*args, **keywords):
            started = time.perf_counter()
            try:
                return function(*args, **keywords)
            finally:
                seconds[name] += time.perf_counter() - started

        return run

    with ExitStack() as stack:
        for name, (holder, attribute) in PARTS.items():
            stack.enter_context(patch.object(holder, attribute, timed(name, getattr(holder, attribute))))
        yield seconds


def shares(parts: Sequence[Counter[str]], wholes: Sequence[float], yardsticks: Sequence[float]) -> dict[str, float]:
    """Median over the rounds of each part's seconds over the yardstick's, and of all of them together."""
    rounds = [
        ({**part, BASE: whole - part.total()}, of) for part, whole, of in zip(parts, wholes, yardsticks, strict=True)
    ]
    found = {name: statistics.median(part[name] / of for part, of in rounds) for name in (BASE, *PARTS)}
    return {**found, "together": statistics.median(whole / of for whole, of in zip(wholes, yardsticks, strict=True))}
