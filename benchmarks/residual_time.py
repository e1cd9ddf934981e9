"""Residual of Theorem 3.1 over its optimum against the time of merging: columns a rank, and subspace iterations.

The seven layers of one block of SmolLM2-135M, 8 micro-batches of 512 tokens, r = 8. The default is 4 columns a rank and
no further iteration. Run from a checkout:

    python benchmarks/residual_time.py --data ../shared/data/gsm8k/train.jsonl
"""

from __future__ import annotations

import statistics
import time

import matplotlib.pyplot as plt
import torch

from loraga.accumulate import FactorAccumulator
from loraga.capture import capture
from loraga.gradient import layer_generator
from loraga.layers import target_layers
from loraga.passes import gradient_pass
from pairs import report
from residual import residual_ratio
from subjects import parser, subject

RANK, BLOCK, TIMES = 8, "15", 3
CHOICES = [(columns, iterations) for iterations in (0, 1) for columns in (2, 3, 4, 6, 8)]


def main() -> None:
    arguments = parser(__doc__).parse_args()
    given = subject(arguments, 8, 4, 128)
    model = given.base()
    layers = {name: layer for name, layer in target_layers(model).items() if name.split(".")[2] == BLOCK}
    calls: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in layers}
    keep = lambda name, inputs, outputs: calls[name].append((inputs.clone(), outputs.clone()))  # noqa: E731
    with gradient_pass(model), capture(model, layers, keep):
        for batch in given.batches:
            model(**batch).loss.backward()
    exact = {name: sum(dY.double().T @ X.double() for X, dY in pairs) for name, pairs in calls.items()}
    values = {name: torch.linalg.svdvals(matrix) for name, matrix in exact.items()}
    rows = []
    for columns, iterations in CHOICES:
        seconds, ratios = [], []
        for repeat in range(TIMES):
            started = time.perf_counter()
            for name, pairs in calls.items():
                accumulator = FactorAccumulator(columns * RANK, layer_generator(0, name), iterations)
                for X, dY in pairs:
                    accumulator.add(X, dY, 1.0)
                found = accumulator.finish(1.0)
                if repeat == 0:
                    ratios.append(residual_ratio(exact[name], values[name], found, RANK))
            seconds.append(time.perf_counter() - started)
        row = {
            "columns_per_rank": columns,
            "iterations": iterations,
            "seconds": min(seconds),
            "median": statistics.median(ratios),
            "worst": max(ratios),
        }
        rows.append(row)
        print(row, flush=True)
    if arguments.output:
        report("Residual against time", arguments.output / "residual_time.json", {"rank": RANK}, [], rows=rows)
        draw(rows, arguments.output / "residual_time.png")


def draw(rows, path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    unit = next(row["seconds"] for row in rows if (row["columns_per_rank"], row["iterations"]) == (4, 0))
    for iterations, marker in ((0, "o"), (1, "s")):
        chosen = [row for row in rows if row["iterations"] == iterations]
        times = [row["seconds"] / unit for row in chosen]
        axes.plot(times, [row["median"] - 1 for row in chosen], marker=marker, label=f"{iterations} further iterations")
        for row, x in zip(chosen, times, strict=True):
            axes.annotate(f"{row['columns_per_rank']}r", (x, row["median"] - 1), (4, 4), textcoords="offset points")
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="time over the default's (4r, no further iteration)", ylabel="residual over the optimum, minus 1")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
