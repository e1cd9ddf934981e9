"""How good is `suggest_learning_rate`? Its value against a grid of factors of 2, on SmolLM2-135M.

    each task and method: suggestion -> short trainings at suggestion * 2^k, until the best is inside the grid
                          -> in the training at the suggestion: measured again after the warm-up and later

Run from a checkout, with the folder that holds gsm8k/ and sst2/:

    python benchmarks/learning_rate.py --data ../shared/data   # appends to docs/results/learning_rate.jsonl
    python benchmarks/learning_rate.py --table                 # prints the table of docs/learning-rate.md

One line is written when a suggestion or a training is done, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from loraga.lab import smollm2
from loraga.learning_rate import suggest_learning_rate

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "learning_rate.jsonl"
STEPS, WARM_UP, SEED = 30, 3, 0
BATCHES = 8  # for a suggestion at the start and for LoRA-GA's gradient
AGAIN_AFTER, AGAIN_BATCHES = (WARM_UP, 10), 4
MOST_RUNS = 5

Batch = dict[str, Tensor]
Record = dict[str, Any]


# ---- tasks: (prompt, answer) pairs in the model's chat format, loss on the answer alone


def gsm8k(data: Path, split: str) -> list[tuple[str, str]]:
    """GSM8K's questions and worked answers."""
    lines = (data / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["question"], row["answer"]) for row in map(json.loads, lines)]


def sst2(data: Path, split: str) -> list[tuple[str, str]]:
    """SST-2's sentences and their label as a word."""
    name = {"train": "train", "test": "dev"}[split]
    lines = (data / "sst2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t", 1) for line in lines]
    return [(sentence, "positive" if label == "1" else "negative") for label, sentence in rows]


# rows a batch (about 480 tokens), tokens a row at most, held-out rows
TASKS: dict[str, tuple[Callable[[Path, str], list[tuple[str, str]]], int, int, int]] = {
    "gsm8k": (gsm8k, 3, 150, 24),
    "sst2": (sst2, 10, 48, 160),
}


def task_batches(task: str, data: Path, tokenizer: Any, steps: int = STEPS) -> tuple[list[Batch], list[Batch]]:
    """Training batches in a seeded order, enough for so many steps, and fixed held-out batches."""
    read, rows, most_tokens, held_out = TASKS[task]
    made = []
    for split, count in (("train", (steps + 2 * BATCHES) * rows), ("test", held_out)):
        pairs = read(data, split)
        random.Random(SEED).shuffle(pairs)
        examples = (encode(tokenizer, prompt, answer) for prompt, answer in pairs)
        kept = [example for example, _ in zip(short(examples, most_tokens), range(count), strict=False)]
        made.append([pad(kept[i : i + rows], tokenizer.pad_token_id) for i in range(0, len(kept), rows)])
    return made[0], made[1]


def short(examples: Iterator[tuple[list[int], list[int]]], most_tokens: int) -> Iterator[tuple[list[int], list[int]]]:
    """Those examples that are short enough."""
    return (example for example in examples if sum(map(len, example)) <= most_tokens)


def encode(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokens of the prompt and of the answer."""
    asked = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(asked), tokenizer.encode(f"{answer}<|im_end|>")


def pad(examples: list[tuple[list[int], list[int]]], pad_token: int) -> Batch:
    """One batch, padded on the right, with labels on the answers."""
    width = max(len(prompt) + len(answer) for prompt, answer in examples)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in examples:
        used, rest = len(prompt) + len(answer), width - len(prompt) - len(answer)
        rows["input_ids"].append([*prompt, *answer, *[pad_token] * rest])
        rows["attention_mask"].append([1] * used + [0] * rest)
        rows["labels"].append([-100] * len(prompt) + answer + [-100] * rest)
    return {name: torch.tensor(values) for name, values in rows.items()}


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own loss, with logits at the answers' tokens alone."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = base.model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)[0][:, :-1]
    targets = batch["labels"][:, 1:]
    scored = targets != -100
    return nn.functional.cross_entropy(base.lm_head(hidden[scored]).float(), targets[scored])


# ---- methods: a model that is ready to train


def lora(batches: list[Batch]) -> nn.Module:
    """PEFT's LoRA, eta = alpha / r."""
    return adapted(use_rslora=False)


def lora_ga_64(batches: list[Batch]) -> nn.Module:
    """LoRA-GA at the paper's gamma for Llama."""
    return lora_ga(batches, gamma=64)


def lora_ga_4096(batches: list[Batch]) -> nn.Module:
    """LoRA-GA at a small start."""
    return lora_ga(batches, gamma=4096)


def full(batches: list[Batch]) -> nn.Module:
    """Full fine-tuning, embeddings included."""
    return smollm2.load()[0].requires_grad_(True)


def adapted(use_rslora: bool) -> nn.Module:
    """The model with a fresh LoRA of rank 8 on all 210 linear layers."""
    torch.manual_seed(SEED)
    config = LoraConfig(r=8, lora_alpha=16, use_rslora=use_rslora, target_modules="all-linear")
    return get_peft_model(smollm2.load()[0], config)


def lora_ga(batches: list[Batch], gamma: float) -> nn.Module:
    """The adapter started along the gradient of the first batches."""
    import loraga

    model = adapted(use_rslora=True)
    loraga.initialize(model, batches, num_batches=BATCHES, gamma=gamma, loss=answer_loss, seed=SEED)
    return model


METHODS = {
    "lora": lora,
    "lora_ga, gamma 4096": lora_ga_4096,
    "full": full,
    "lora_ga, gamma 64": lora_ga_64,
}


# ---- measuring


def measure(task: str, method: str, data: Path, results: Path) -> None:
    """Everything of one task and method that `results` does not hold yet."""
    model, start, batches, held_out = None, {}, [], []

    def ready() -> nn.Module:
        nonlocal model, start, batches, held_out
        if model is None:
            batches, held_out = task_batches(task, data, smollm2.load()[1])
            model = METHODS[method](batches)
            start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name in start:
                    value.copy_(start[name])
        return model

    if (suggested := find(results, task, method, "suggestion", after=0)) is None:
        rate = suggest_learning_rate(ready(), batches, num_batches=BATCHES, loss=answer_loss, seed=SEED)
        suggested = {"task": task, "method": method, "kind": "suggestion", "after": 0, **rate.to_dict()}
        write(results, suggested)
    centre = float(f"{suggested['value']:.3g}")
    while (factor := next_factor(losses_by_factor(results, task, method, centre))) is not None:
        again_after = AGAIN_AFTER if factor == 0 else ()
        run, again = train(ready(), batches, held_out, centre * 2.0**factor, again_after)
        for record in [run, *again]:
            write(results, {"task": task, "method": method, **record})


def train(
    model: nn.Module, batches: list[Batch], held_out: list[Batch], rate: float, again_after: tuple[int, ...]
) -> tuple[Record, list[Record]]:
    """One short training, and the suggestions on its way."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, STEPS)
    losses, again, seconds = [], [], 0.0
    model.train()
    for step in range(STEPS):
        if step in again_after:
            ahead = batches[step : step + AGAIN_BATCHES]
            found = suggest_learning_rate(model, ahead, num_batches=None, loss=answer_loss, seed=SEED)
            again.append({"kind": "suggestion", "after": step, "rate": rate, **found.to_dict()})
        began = time.perf_counter()
        loss = answer_loss(model, batches[step])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - began
        losses.append(loss.item())
    run = {"kind": "run", "rate": rate, "steps": STEPS, "held_out": mean_loss(model, held_out)}
    return {
        **run,
        "last_ten": sum(losses[-10:]) / 10,
        "losses": losses,
        "seconds_a_step": seconds / STEPS,
    }, again


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[Batch]) -> float:
    """Mean loss a token over all batches."""
    model.eval()
    terms = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    losses = [answer_loss(model, batch).item() * count for batch, count in zip(batches, terms, strict=True)]
    return sum(losses) / sum(terms)


def next_factor(losses: dict[int, float]) -> int | None:
    """The power of 2 over the suggestion to train at next; None when the best is inside or enough was run."""
    for factor in (0, -1, 1):
        if factor not in losses:
            return factor
    best = min(losses, key=lambda factor: losses[factor])
    if len(losses) >= MOST_RUNS or min(losses) < best < max(losses):
        return None
    return best - 1 if best == min(losses) else best + 1


# ---- results


def read(results: Path) -> list[Record]:
    """All lines that are there."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def write(results: Path, record: Record) -> None:
    """Adds one line."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(record) + "\n")
    shown = {
        name: record[name]
        for name in ("task", "method", "kind", "after", "value", "rate", "held_out")
        if name in record
    }
    print(shown, flush=True)


def find(results: Path, task: str, method: str, kind: str, after: int) -> Record | None:
    """A suggestion that is already there."""
    for record in read(results):
        if (record["task"], record["method"], record["kind"], record.get("after")) == (
            task,
            method,
            kind,
            after,
        ):
            return record
    return None


def losses_by_factor(results: Path, task: str, method: str, centre: float) -> dict[int, float]:
    """Held-out losses of the trainings that are there, by power of 2 over the suggestion."""
    runs = [r for r in read(results) if (r["task"], r["method"], r["kind"]) == (task, method, "run")]
    return {round(math.log2(run["rate"] / centre)): run["held_out"] for run in runs}


def table(results: Path) -> str:
    """The Markdown table of docs/learning-rate.md."""
    names = ["task", "method", "suggested (low to high)", "best of the grid (held-out loss)"]
    names += ["suggested / best", "cost of the suggestion", *(f"again after {n} steps" for n in AGAIN_AFTER)]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for task in TASKS:
        for method in METHODS:
            at_start = find(results, task, method, "suggestion", after=0)
            if at_start is None:
                continue
            centre = float(f"{at_start['value']:.3g}")
            losses = losses_by_factor(results, task, method, centre)
            again = [find(results, task, method, "suggestion", after=n) for n in AGAIN_AFTER]
            cells = [
                task,
                method,
                f"{at_start['value']:.1e} ({at_start['low']:.1e} to {at_start['high']:.1e})",
            ]
            if 0 in losses:
                best = min(losses, key=lambda factor: losses[factor])
                edge = "" if min(losses) < best < max(losses) else ", the grid's end"
                cells += [
                    f"{centre * 2.0**best:.1e} ({losses[best]:.4f}{edge})",
                    f"{2.0**-best:g}",
                    f"{losses[0] - losses[best]:.4f} ({100 * (losses[0] / losses[best] - 1):.1f} %)",
                ]
            else:
                cells += ["", "", ""]
            cells += [f"{found['value']:.1e}" if found else "" for found in again]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line and measures, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with gsm8k/ and sst2/")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines, appended to")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and stop")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.out))
        return
    for task in arguments.tasks:
        for method in arguments.methods:
            measure(task, method, arguments.data, arguments.out)


if __name__ == "__main__":
    main()
