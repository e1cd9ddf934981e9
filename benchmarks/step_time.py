"""Time of a training step with the start subtracted beside the adapter, and folded into the weights, over LoRA's.

Forward, backward and AdamW of SmolLM2-135M on one micro-batch of 256 tokens, all linear layers, r = 8. The three models
stand side by side and take their steps in turn. Run from a checkout:

    python benchmarks/step_time.py --data ../shared/data/gsm8k/train.jsonl
"""

from __future__ import annotations

import torch

from pairs import Case, in_turn, ratio, report
from subjects import parser, start_with_loraga, subject

LORA = "step of PEFT's LoRA"


def stepper(model, batch):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def step(_: object) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rounds", type=int, default=15)
    arguments = arguments_of.parse_args()
    given = subject(arguments, 2, 2, 128)
    gradients_of = given.batches[:1]
    models = {LORA: given.adapted(8)}
    for offset in ("adapter", "weights"):
        models[f'step with offset="{offset}"'] = given.adapted(8)
        start_with_loraga(models[f'step with offset="{offset}"'], gradients_of, offset=offset)
    cases = {name: Case(stepper(model.train(), given.batches[1])) for name, model in models.items()}
    seconds = in_turn(cases, arguments.rounds, warm_up=True)
    ratios = [
        ratio(seconds, 'step with offset="weights"', LORA, 1.02),
        ratio(seconds, 'step with offset="adapter"', LORA, 1.08),
    ]
    path = arguments.output / "step_time.json" if arguments.output else None
    report("Time of a training step", path, {"tokens": 256, "rounds": arguments.rounds}, ratios, seconds=seconds)


if __name__ == "__main__":
    main()
