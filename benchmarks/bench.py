"""Runs every benchmark of speed and memory, one process each, and writes docs/performance.md from what they found.

python benchmarks/bench.py --data ../shared/data/gsm8k/train.jsonl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RATIOS_OF = ("start_time", "start_memory", "step_time", "files_time")
SCRIPTS = (*RATIOS_OF, "residual_time", "growth")
INTRODUCTION = """# Performance

Written by `make bench` from `benchmarks/results/*.json`; `train.jsonl` is GSM8K's. Absolute times mean little:
each figure is a ratio within one run. Rows with pairs were taken in turn (peaks: two processes at a time), with
their spread beside their median. The yardstick of a start is the forward and backward of a LoRA training step on
the same micro-batches with adapters of rank 8 attached: what training pays next anyway.
"""
PARTS = """### Where a start's time goes

Seconds in each part of `initialize` over those of the yardstick, in the same runs; medians, of the whole too.

"""

NEARER = """## What a nearer result costs

`python benchmarks/residual_time.py --data train.jsonl`: the seven layers of one block of SmolLM2-135M, 8 micro-batches
of 512 tokens, rank 8; the shortest of three times.

"""
GROWTH = """## Growth

`python benchmarks/growth.py`: time = c x^exponent. Tokens, rank and width: merging 4 micro-batches of one square layer
(512 tokens, rank 8, width 1024, one of them varied). Depth: `estimate_gradients` on a Llama of width 256. Medians of 5.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="JSON lines with question and answer; without it only the page is written"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "performance.md")
    arguments = parser.parse_args()
    if arguments.data is not None:
        for script in SCRIPTS:
            print(f"== {script}", flush=True)
            data = [] if script == "growth" else ["--data", str(arguments.data)]
            command = [sys.executable, str(HERE / f"{script}.py"), *data, "--output", str(arguments.output)]
            subprocess.run(command, check=True)
    arguments.page.write_text(page(arguments.output))


def page(results: Path) -> str:
    read = {script: json.loads((results / f"{script}.json").read_text()) for script in SCRIPTS}
    parts = [
        INTRODUCTION,
        section("start_time", read["start_time"]),
        PARTS + parts_table(read["start_time"]["parts"]),
        *(section(script, read[script]) for script in RATIOS_OF[1:]),
        NEARER + residual_table(read["residual_time"]["rows"]),
        "![residual against time](../benchmarks/results/residual_time.png)",
        GROWTH + growth_table(read["growth"]["growth"]),
        "![growth](../benchmarks/results/growth.png)",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def section(script: str, read: dict[str, Any]) -> str:
    return f"## {read['title']}\n\n{settings(script, read)}\n\n{table(RATIOS, map(ratio_cells, read['ratios']))}"


def settings(script: str, read: dict[str, Any]) -> str:
    listed = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in read["settings"].items())
    return f"`python benchmarks/{script}.py --data train.jsonl`: {listed}."


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


RATIOS = ("what", "over", "median", "lowest to highest", "pairs", "bound")


def ratio_cells(row: dict[str, Any]) -> tuple[str, ...]:
    bound = "" if row["bound"] is None else f"{row['bound']:g}, {'kept' if row['kept'] else '**not kept**'}"
    spread = f"{min(row['values']):.2f} to {max(row['values']):.2f}"
    return row["what"], row["of"], f"{row['median']:.2f}", spread, str(len(row["values"])), bound


def parts_table(parts: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(parts.values())))
    rows = [(name, *(f"{shares[name]:.2f}" for shares in parts.values())) for name in names]
    return table(("part", *(f"r={rank}" for rank in parts)), rows)


def residual_table(rows: list[dict[str, Any]]) -> str:
    unit = next(row["seconds"] for row in rows if (row["columns_per_rank"], row["iterations"]) == (4, 0))
    columns = ("columns a rank", "further iterations", "time over the default's", "residual, median", "worst")
    return table(
        columns,
        (
            (
                str(row["columns_per_rank"]),
                str(row["iterations"]),
                f"{row['seconds'] / unit:.2f}",
                f"{row['median']:.4f}",
                f"{row['worst']:.4f}",
            )
            for row in rows
        ),
    )


def growth_table(growth: dict[str, Any]) -> str:
    rows = (
        (name, str(curve["values"][0]), str(curve["values"][-1]), f"{curve['exponent']:.2f}")
        for name, curve in growth.items()
    )
    return table(("with", "from", "to", "exponent"), rows)


if __name__ == "__main__":
    main()
