"""How the time of estimating grows with tokens, rank, width and depth: exponents fitted to medians, and a picture.

Tokens, rank and width: merging 4 micro-batches of one square layer. Depth: estimate_gradients on a Llama of width 256
with random weights. The exponent is p in time = c x^p. Run from a checkout:

    python benchmarks/growth.py --output benchmarks/results
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import loraga
from loraga.accumulate import FactorAccumulator
from loraga.gradient import COLUMNS_PER_RANK, layer_generator
from pairs import report

REPEATS = 5
DEFAULTS = {"tokens": 512, "rank": 8, "width": 1024}
GRIDS = {
    "tokens": [256, 512, 1024, 2048, 4096],
    "rank": [4, 8, 16, 32, 64],
    "width": [512, 1024, 2048, 4096],
    "depth": [2, 4, 8, 16],
}


def merging(tokens: int, rank: int, width: int) -> float:
    generator = torch.Generator().manual_seed(0)
    X, dY = (torch.randn(tokens, width, generator=generator) for _ in range(2))
    accumulator = FactorAccumulator(COLUMNS_PER_RANK * rank, layer_generator(0, "layer"))
    started = time.perf_counter()
    for _ in range(4):
        accumulator.add(X, dY, 1.0)
    return time.perf_counter() - started


def estimating(depth: int) -> float:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=688, num_hidden_layers=depth, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    ids = torch.randint(1, 512, (4, 128))
    batch = {"input_ids": ids, "labels": ids}
    started = time.perf_counter()
    loraga.estimate_gradients(model, [batch] * 2, rank=4, progress=False)
    return time.perf_counter() - started


def measure(name: str, value: int) -> float:
    run = (lambda: estimating(value)) if name == "depth" else (lambda: merging(**{**DEFAULTS, name: value}))
    run()
    return statistics.median(run() for _ in range(REPEATS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name, grid in GRIDS.items():
        seconds = [measure(name, value) for value in grid]
        exponent = float(np.polyfit(np.log(grid), np.log(seconds), 1)[0])
        found[name] = {"values": grid, "seconds": seconds, "exponent": exponent}
        print(f"{name}: exponent {exponent:.2f}, over {grid[0]} to {grid[-1]}", flush=True)
    if arguments.output:
        settings = {"defaults": DEFAULTS, "repeats": REPEATS}
        report("Growth", arguments.output / "growth.json", settings, [], growth=found)
        draw(found, arguments.output / "growth.png")


def draw(growth: dict[str, dict], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(8, 6), layout="constrained")
    for panel, (name, curve) in zip(axes.flat, growth.items(), strict=True):
        panel.loglog(curve["values"], [s / curve["seconds"][0] for s in curve["seconds"]], marker="o")
        panel.set(xlabel=name, ylabel="time over the first", title=f"{name}: exponent {curve['exponent']:.2f}")
        panel.set_xticks(curve["values"], list(map(str, curve["values"])))
        panel.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        panel.minorticks_off()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
