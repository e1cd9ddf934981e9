"""Residual of Theorem 3.1 over its optimum, for every linear layer of a real language model on real text.

The optimum is the Eckart-Young tail sqrt(sum_{i > 2r} s_i^2) of the weight gradient that autograd itself computes; the
residual is ||G A^T A + B B^T G - G||_F of the start that an estimator leads to (unit scale). Run from a checkout:

    python benchmarks/residual.py --data ../shared/data/gsm8k/train.jsonl --batches 8
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraga import estimate_gradients
from loraga.gradient import LowRankGradient
from loraga.layers import target_layers


def text_batches(path: Path, tokenizer, count: int, rows: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Packs question and answer text into batches of rows x length tokens, labels on every token."""
    text = "\n\n".join(f"{row['question']}\n{row['answer']}" for row in map(json.loads, path.read_text().splitlines()))
    needed = count * rows * length
    ids = tokenizer(text[: needed * 8])["input_ids"][:needed]
    if len(ids) < needed:
        raise SystemExit(f"{path} holds {len(ids)} tokens, {needed} are needed")
    blocks = torch.tensor(ids).view(count, rows, length)
    return [{"input_ids": block, "labels": block.clone()} for block in blocks]


def autograd_gradients(model, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Mean weight gradient over all loss terms, by plain autograd on the weights."""
    layers = target_layers(model)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    terms = 0
    for batch in batches:
        count = batch["labels"][:, 1:].numel()
        (model(**batch).loss * count).backward()
        terms += count
    gradients = {name: layer.weight.grad / terms for name, layer in layers.items()}
    for layer in layers.values():
        layer.weight.requires_grad_(False)
        layer.weight.grad = None
    return gradients


def residual_ratio(gradient: torch.Tensor, values: torch.Tensor, estimate: LowRankGradient, rank: int) -> float:
    """||G A^T A + B B^T G - G||_F over the Eckart-Young tail, in float64."""
    G = gradient.double()
    A, B = estimate.Vh[:rank].double(), estimate.U[:, rank : 2 * rank].double()
    residual = torch.linalg.matrix_norm(G @ A.T @ A + B @ (B.T @ G) - G)
    return float(residual / torch.linalg.vector_norm(values[2 * rank :].double()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("~/.cache/loraga/smollm2-135m-instruct").expanduser())
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--estimators", nargs="+", default=["streaming", "exact"], choices=["streaming", "exact"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    batches = text_batches(arguments.data, tokenizer, arguments.batches, arguments.rows, arguments.length)
    started = time.monotonic()
    references = autograd_gradients(model, batches)
    print(f"autograd: {time.monotonic() - started:.0f} s", flush=True)
    values = {name: torch.linalg.svdvals(gradient) for name, gradient in references.items()}
    rows = {}
    for estimator in arguments.estimators:
        started = time.monotonic()
        estimates = estimate_gradients(
            model, batches, rank=arguments.rank, num_batches=None, estimator=estimator, progress=False
        )
        seconds = time.monotonic() - started
        ratios = {
            name: residual_ratio(references[name], values[name], estimates[name], arguments.rank) for name in references
        }
        norms = {name: estimates[name].norm / float(torch.linalg.vector_norm(values[name])) for name in references}
        worst = max(ratios, key=ratios.__getitem__)
        rows[estimator] = {
            "layers": len(ratios),
            "median": statistics.median(ratios.values()),
            "worst": ratios[worst],
            "worst_layer": worst,
            "norm_ratio": [min(norms.values()), max(norms.values())],
            "seconds": round(seconds, 1),
        }
        print(estimator, json.dumps(rows[estimator]), flush=True)
    if arguments.output:
        settings = {key: getattr(arguments, key) for key in ("batches", "rows", "length", "rank")}
        arguments.output.write_text(json.dumps({"settings": settings, "data": arguments.data.name, **rows}, indent=2))


if __name__ == "__main__":
    main()
