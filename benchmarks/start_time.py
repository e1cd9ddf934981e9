"""Time of a start, over the forward and backward passes of a LoRA training step on the same micro-batches.

SmolLM2-135M, 8 micro-batches of 512 tokens, all linear layers. The yardstick is what the user pays next anyway.
Run from a checkout:

    python benchmarks/start_time.py --data ../shared/data/gsm8k/train.jsonl
"""

from __future__ import annotations

from pairs import Case, in_turn, ratio, report
from subjects import (
    forward_and_backward,
    parser,
    start_with_eva,
    start_with_loraga,
    start_with_peft,
    subject,
)

YARDSTICK = "forward and backward of LoRA"
BATCHES, ROWS, LENGTH = 8, 4, 128


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rounds", type=int, default=5)
    arguments_of.add_argument("--rivals", nargs="*", default=["peft", "eva", "exact"], choices=["peft", "eva", "exact"])
    arguments = arguments_of.parse_args()
    given = subject(arguments, BATCHES, ROWS, LENGTH)
    few = given.batches[:1]
    trained = given.adapted(8)

    def start(batches, rank, **settings):
        return Case(lambda model: start_with_loraga(model, batches, **settings), lambda: given.adapted(rank))

    ours = {
        YARDSTICK: Case(lambda _: forward_and_backward(trained, given.batches)),
        "initialize, r=8": start(given.batches, 8),
        "initialize, r=32": start(given.batches, 32),
    }
    if "peft" in arguments.rivals:
        for rank in (8, 32):
            ours[f"PEFT's lora_ga, r={rank}"] = Case(
                lambda model, r=rank: start_with_peft(model, given.batches, r), given.base
            )
    seconds = in_turn(ours, arguments.rounds)
    ratios = [
        ratio(seconds, "initialize, r=8", YARDSTICK, 1.15),
        ratio(seconds, "initialize, r=32", YARDSTICK, 1.4),
    ]
    if "peft" in arguments.rivals:
        for rank in (8, 32):
            ratios.append(ratio(seconds, f"PEFT's lora_ga, r={rank}", YARDSTICK))
            ratios.append(ratio(seconds, f"initialize, r={rank}", f"PEFT's lora_ga, r={rank}", 1.0))

    # one micro-batch: Algorithm 1 is for one, and EVA goes over its data until it settles
    one = {
        "initialize, one micro-batch": start(few, 8),
        "Algorithm 1, one micro-batch": start(few, 8, estimator="exact"),
        "EVA, one micro-batch": Case(lambda model: start_with_eva(model, few, 8), given.base),
    }
    two = {
        "initialize, two micro-batches": start(given.batches[:2], 8),
        "Algorithm 2, two micro-batches": start(given.batches[:2], 8, estimator="exact"),
    }
    if "eva" not in arguments.rivals:
        del one["EVA, one micro-batch"]
    if arguments.rivals:
        first, second = in_turn(one, arguments.rounds), in_turn(two, arguments.rounds)
        seconds |= first | second
        ratios.append(ratio(first, "initialize, one micro-batch", "Algorithm 1, one micro-batch"))
        ratios.append(ratio(second, "initialize, two micro-batches", "Algorithm 2, two micro-batches"))
        if "eva" in arguments.rivals:
            ratios.append(ratio(first, "initialize, one micro-batch", "EVA, one micro-batch"))
    path = arguments.output / "start_time.json" if arguments.output else None
    settings = {"micro_batches": BATCHES, "rows": ROWS, "length": LENGTH, "rounds": arguments.rounds}
    report("Time of a start", path, settings, ratios, seconds=seconds)


if __name__ == "__main__":
    main()
