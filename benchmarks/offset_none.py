"""offset="none" against offset="adapter": the same start and gamma, trained 60 steps on GSM8K with SmolLM2-135M.

Also: how far the outputs move before the first step, what the saved directory holds, and that the base is untouched.
Run from a checkout:

    python benchmarks/offset_none.py --data ../shared/data --output benchmarks/results/offset_none.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import get_cosine_schedule_with_warmup

import loraga
from learning_rate import BATCHES, SEED, WARM_UP, adapted, answer_loss, mean_loss, task_batches
from loraga.lab import smollm2

STEPS, RATE, GAMMA = 60, 2e-3, 65536.0


def run(offset: str, data: Path) -> dict[str, object]:
    model = adapted(use_rslora=True)
    _, tokenizer = smollm2.load()
    training, held_out = task_batches("gsm8k", data, tokenizer, STEPS)
    base = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
    report = loraga.initialize(model, training[-BATCHES:], gamma=GAMMA, offset=offset, seed=SEED, progress=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, STEPS)
    losses = []
    model.train()
    for step in range(STEPS):
        loss = answer_loss(model, training[step])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"{offset}: step {step + 1}, loss {losses[-1]:.3f}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        shapes = {
            key: tuple(tensor.shape) for key, tensor in load_file(f"{directory}/adapter_model.safetensors").items()
        }
        files = sorted(path.name for path in Path(directory).iterdir())
        ranks = sorted({shape[0] for key, shape in shapes.items() if "lora_A" in key})
    after = model.state_dict()
    return {
        "function_change": report.function_change,
        "held_out": mean_loss(model, held_out),
        "last_ten": sum(losses[-10:]) / 10,
        "ranks_on_disk": ranks,
        "files": files,
        "base_untouched": all(torch.equal(value, after[name]) for name, value in base.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = {offset: run(offset, arguments.data) for offset in ("none", "adapter")}
    settings = {"steps": STEPS, "rate": RATE, "gamma": GAMMA, "task": "gsm8k"}
    arguments.output.write_text(json.dumps({"settings": settings, **rows}, indent=2) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
