"""The search for the demo's learning rates: `python -m loraga.lab.search`.

Each method runs at rates in factors of 2; as long as a method's best one lies at the edge of what it has tried, the
next one outside is tried too. Rows are drawn by another data seed than the demo's, so that what it shows has chosen
nothing.
Interrupted, the same command goes on after the last finished run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from loraga.errors import LoragaError

from .comparison.cells import next_rate as rate_outside
from .demo import DEMO_METHODS, demo_recipe, variant
from .errors import DivergedError, SettingsError
from .progress import WorkProgress
from .rates import FILE, Rates, choose
from .recipe_file import recipe_values
from .run import run
from .run_folder import folder_of

if TYPE_CHECKING:
    from .recipe import Recipe

FIRST_RATES = (0.002, 0.004)
MOST_RATES = 7  # a method's, then it stays at the edge
OTHER_ROWS = 1000  # added to the data seed: the demo's held-out rows choose nothing

Runs = list[Mapping[str, Any]]


def search(recipe: Recipe, first_rates: Iterable[float], carry_out: Callable[[Recipe], Mapping[str, Any]]) -> Runs:
    """Runs every method at the first rates, and further out as long as the best one lies at an edge.

    Args:
        recipe: what is run; its held-out rows decide.
        first_rates: tried by every method.
        carry_out: runs a recipe and gives its metrics.

    Returns:
        The runs' metrics.
    """
    folder = folder_of(recipe).path

    def tried(method: str, rate: float) -> Mapping[str, Any]:
        return carry_out(variant(recipe, method, rate, folder))

    rates = sorted(first_rates)
    runs: Runs = []
    for method in DEMO_METHODS:
        records = {rate: tried(method, rate) for rate in rates}
        while (further := next_rate({rate: loss_of(record) for rate, record in records.items()})) is not None:
            records[further] = tried(method, further)
        runs += [records[rate] for rate in sorted(records)]
    return runs


def loss_of(metrics: Mapping[str, Any]) -> float:
    """The held-out loss of a run."""
    return metrics["held_out"]["loss"]


def next_rate(losses: Mapping[float, float]) -> float | None:
    """The rate to try after these, as a comparison's search does; a loss that is not finite is worse than any other."""
    return rate_outside({rate: loss if math.isfinite(loss) else math.inf for rate, loss in losses.items()}, MOST_RATES)


def package_data(recipe: Recipe, command: str, runs: Runs, rates: Rates) -> dict[str, Any]:
    """What is kept of a search: its command, its recipe, each run's numbers, and the choice."""
    return {
        "command": command,
        "recipe": recipe_values(recipe),
        "runs": [
            {
                "method": metrics["method"],
                "learning_rate": metrics["learning_rate"],
                "held_out_loss": round(loss_of(metrics), 4),
                "held_out_accuracy": metrics["held_out"]["accuracy"],
                "training_loss_of_the_last_ten_steps": round(metrics["train_loss"], 4),
                "seconds_per_step": round(metrics["seconds_per_step"], 2),
            }
            for metrics in runs
            if math.isfinite(loss_of(metrics))
        ],
        "best": dict(rates.best),
        "common": rates.common,
    }


def main(arguments: list[str] | None = None) -> int:
    """Searches, and writes the file that the demo reads.

    Args:
        arguments: of the command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m loraga.lab.search", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("search_output"), help="where the runs go")
    parser.add_argument("--rates", type=float, nargs="+", default=FIRST_RATES)
    parser.add_argument("--steps", type=int, help="training steps a run, by default the demo's")
    parser.add_argument("--write", type=Path, default=Path(__file__).with_name(FILE), help="written at the end")
    options = parser.parse_args(arguments)
    recipe = demo_recipe(options.output, options.steps)
    recipe = replace(recipe, data_seed=recipe.seed + OTHER_ROWS)
    console = Console(stderr=True)

    def carry_out(one: Recipe) -> Mapping[str, Any]:
        try:
            with WorkProgress(console) as progress:
                return run(one, console, progress)
        except DivergedError:  # a rate that is far too high has been tried, too
            return {"method": one.method, "learning_rate": one.learning_rate, "held_out": {"loss": math.inf}}

    try:
        runs = search(recipe, options.rates, carry_out)
    except LoragaError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, SettingsError) else 1
    words = sys.argv[1:] if arguments is None else arguments
    rates = choose((metrics["method"], metrics["learning_rate"], loss_of(metrics)) for metrics in runs)
    content = package_data(recipe, " ".join(["python -m loraga.lab.search", *words]), runs, rates)
    options.write.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
