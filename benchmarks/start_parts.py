"""Where the time of a start goes: its parts over the forward and backward of LoRA, r = 8 and r = 32.

SmolLM2-135M, 8 micro-batches of 512 tokens, all linear layers. "The base model" is all that is in no other part: its
forward and backward passes, without adapters. Run from a checkout:

    python benchmarks/start_parts.py --data ../shared/data/gsm8k/train.jsonl
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from loraga import estimate, initialization
from pairs import report
from start_time import BATCHES, BOUNDS, LENGTH, ROWS
from subjects import Subject, forward_and_backward, parser, start_with_loraga, subject

# what stands for each part: an attribute that is timed, by the class or module that holds it
PARTS = {
    "merging each call": (estimate._Sums, "receive"),
    "factoring the sums": (estimate._Sums, "finish"),
    "comparing the outputs before and after": (initialization, "model_outputs"),
    "the report": (initialization.LayerStart, "report"),
}
BASE = "the base model"


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


def measure(given: Subject, rank: int, rounds: int) -> dict[str, float]:
    """Medians of each part over the yardstick."""
    trained, found = given.adapted(rank), {}
    for number in range(rounds):
        model = given.adapted(rank)
        started = time.perf_counter()
        forward_and_backward(trained, given.batches)
        yardstick = time.perf_counter() - started
        with timed_parts() as seconds:
            started = time.perf_counter()
            start_with_loraga(model, given.batches)
            whole = time.perf_counter() - started
        seconds[BASE] = whole - sum(seconds.values())
        for name in (BASE, *PARTS):
            found.setdefault(name, []).append(seconds[name] / yardstick)
        print(f"r={rank}, round {number + 1} of {rounds}: {whole / yardstick:.2f} of the yardstick", flush=True)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rounds", type=int, default=1)
    arguments = arguments_of.parse_args()
    given = subject(arguments, BATCHES, ROWS, LENGTH)
    parts = {rank: measure(given, rank, arguments.rounds) for rank in BOUNDS}
    for rank, shares in parts.items():
        print(f"r={rank}: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()), flush=True)
    if arguments.output:
        settings = {"micro_batches": BATCHES, "rows": ROWS, "length": LENGTH, "rounds": arguments.rounds}
        report("Where a start's time goes", arguments.output / "start_parts.json", settings, [], parts=parts)


if __name__ == "__main__":
    main()
