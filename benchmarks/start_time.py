"""Time of a start, over the forward and backward passes of a LoRA training step on the same micro-batches.

SmolLM2-135M, 8 micro-batches of 512 tokens, all linear layers. The yardstick is what the user pays next anyway; its
adapter has rank 8, for both ranks.
Run from a checkout:

    python benchmarks/start_time.py --data ../shared/data/gsm8k/train.jsonl
"""

from __future__ import annotations

from collections import Counter

from peft import PeftModel

from pairs import Case, Ratio, in_turn, ratio, report
from start_parts import shares, timed_parts
from subjects import (
    Batch,
    Subject,
    forward_and_backward,
    parser,
    start_with_eva,
    start_with_loraga,
    start_with_peft,
    subject,
)

BATCHES, ROWS, LENGTH = 8, 4, 128
YARDSTICK, PEFT = "forward and backward of LoRA, r=8", "PEFT's lora_ga"
BOUNDS = {8: 1.15, 32: 1.4}  # of the yardstick, by rank


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rounds", type=int, default=5)
    arguments = arguments_of.parse_args()
    given = subject(arguments, BATCHES, ROWS, LENGTH)
    parts: dict[int, list[Counter[str]]] = {rank: [] for rank in BOUNDS}
    trained = given.adapted(8)
    forward_and_backward(trained, given.batches[:1])  # the first pass of a process is slower than all others
    cases = {YARDSTICK: Case(lambda _: forward_and_backward(trained, given.batches))}
    for rank in BOUNDS:
        cases |= starts(given, rank, parts[rank])
    seconds = in_turn(cases, arguments.rounds) | in_turn(few_batches(given), arguments.rounds)
    ratios = [one for rank, bound in BOUNDS.items() for one in ratios_of(seconds, rank, bound)] + [
        ratio(seconds, "initialize, one micro-batch", "Algorithm 1, one micro-batch"),
        ratio(seconds, "initialize, one micro-batch", "EVA, one micro-batch"),
        ratio(seconds, "initialize, two micro-batches", "Algorithm 2, two micro-batches"),
    ]
    path = arguments.output / "start_time.json" if arguments.output else None
    settings = {"micro_batches": BATCHES, "rows": ROWS, "length": LENGTH, "rounds": arguments.rounds}
    of_yardstick = {rank: shares(parts[rank], seconds[f"initialize, r={rank}"], seconds[YARDSTICK]) for rank in BOUNDS}
    for rank, listed in of_yardstick.items():
        print(f"r={rank}: " + ", ".join(f"{name} {share:.3f}" for name, share in listed.items()), flush=True)
    report("Time of a start", path, settings, ratios, seconds=seconds, parts=of_yardstick)


def starts(given: Subject, rank: int, parts: list[Counter[str]]) -> dict[str, Case]:
    return {
        f"initialize, r={rank}": Case(
            lambda model: parts.append(profiled(model, given.batches)), lambda: given.adapted(rank)
        ),
        f"{PEFT}, r={rank}": Case(lambda model: start_with_peft(model, given.batches, rank), given.base),
    }


def profiled(model: PeftModel, batches: list[Batch]) -> Counter[str]:
    with timed_parts() as seconds:
        start_with_loraga(model, batches)
    return seconds


def ratios_of(seconds: dict[str, list[float]], rank: int, bound: float) -> list[Ratio]:
    ours, peft = f"initialize, r={rank}", f"{PEFT}, r={rank}"
    return [
        ratio(seconds, ours, YARDSTICK, bound),
        ratio(seconds, peft, YARDSTICK),
        ratio(seconds, ours, peft, 1.0),
    ]


def few_batches(given: Subject) -> dict[str, Case]:
    """Algorithm 1 is made for one micro-batch, Algorithm 2 is slow, and EVA repeats its data until it settles."""
    one, two = given.batches[:1], given.batches[:2]
    return {
        "initialize, one micro-batch": start(given, one, 8),
        "Algorithm 1, one micro-batch": start(given, one, 8, estimator="exact"),
        "EVA, one micro-batch": Case(lambda model: start_with_eva(model, one, 8), given.base),
        "initialize, two micro-batches": start(given, two, 8),
        "Algorithm 2, two micro-batches": start(given, two, 8, estimator="exact"),
    }


def start(given: Subject, batches: list[Batch], rank: int, **settings: object) -> Case:
    return Case(lambda model: start_with_loraga(model, batches, **settings), lambda: given.adapted(rank))


if __name__ == "__main__":
    main()
