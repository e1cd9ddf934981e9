"""The search for the demo's learning rates: `python -m loraga.lab.search`.

Each method runs at rates in factors of 2; as long as a method's best one lies at the edge of what it has tried, the
next one outside is tried too. The rates are chosen by the loss on validation items, which the demo never shows.
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
from typing import Any

from loraga.errors import LoragaError

from .curves import final_loss
from .errors import SettingsError
from .experiment import Advance, Experiment, run, run_key
from .methods import METHODS, Adapter
from .rates import FILE, Rates, choose
from .store import Store

FIRST_RATES = (0.002, 0.004)
MOST_RATES = 7  # a method's, then it stays at the edge

Runs = list[Mapping[str, Any]]


def search(experiment: Experiment, store: Store, first_rates: Iterable[float], advance: Advance) -> Runs:
    """Runs every method at the first rates, and further out as long as the best one lies at an edge.

    Args:
        experiment: what is run; its validation items decide.
        store: where finished runs are kept.
        first_rates: tried by every method.
        advance: told about the work done.

    Returns:
        The runs' records.
    """

    def tried(method: str, rate: float) -> Mapping[str, Any]:
        return store.once(
            run_key(method, rate),
            lambda: run(experiment, method, rate, experiment.splits.validation, advance),
        )

    rates = sorted(first_rates)
    runs: Runs = []
    for method in METHODS:
        records = {rate: tried(method, rate) for rate in rates}
        while (further := next_rate({rate: record["loss"] for rate, record in records.items()})) is not None:
            records[further] = tried(method, further)
        runs += [records[rate] for rate in sorted(records)]
    return runs


def next_rate(losses: Mapping[float, float]) -> float | None:
    """The rate to try after these, or None if the best one has a worse neighbour on either side.

    Args:
        losses: {rate: loss}; a loss that is not finite is worse than any other.

    Returns:
        Half the lowest or twice the highest rate, rounded to three digits.
    """
    if len(losses) >= MOST_RATES:
        return None
    best = min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)
    if best == min(losses):
        return float(f"{best / 2:.3g}")
    return float(f"{best * 2:.3g}") if best == max(losses) else None


def package_data(experiment: Experiment, command: str, runs: Runs, rates: Rates) -> dict[str, Any]:
    """What is kept of a search: its command, its settings, each run's numbers, and the choice."""
    return {
        "command": command,
        "settings": experiment.settings(),
        "runs": [
            {
                "method": record["method"],
                "learning_rate": record["learning_rate"],
                "validation_loss": round(record["loss"], 4),
                "validation_accuracy": record["accuracy"],
                "training_loss_of_the_last_ten_steps": round(final_loss(record["losses"]), 4),
                "seconds_per_step": round(record["seconds_per_step"], 2),
            }
            for record in runs
        ],
        "best": dict(rates.best),
        "common": rates.common,
    }


def main(arguments: list[str] | None = None, say: Callable[[str], object] = sys.stdout.write) -> int:
    """Searches, and writes the file that the demo reads.

    Args:
        arguments: of the command line.
        say: takes a line of progress.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m loraga.lab.search", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("search_output"), help="where finished runs are kept")
    parser.add_argument("--rates", type=float, nargs="+", default=FIRST_RATES)
    parser.add_argument("--gamma", type=float, default=Adapter().gamma)
    parser.add_argument("--write", type=Path, default=Path(__file__).with_name(FILE), help="written at the end")
    options = parser.parse_args(arguments)
    experiment = replace(Experiment(), adapter=Adapter(gamma=options.gamma))

    def advance(work: float, note: str) -> None:
        say(note + "\n")

    try:
        store = Store(options.output / "search.json", experiment.settings())
        runs = search(experiment, store, options.rates, advance)
    except LoragaError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, SettingsError) else 1
    words = sys.argv[1:] if arguments is None else arguments
    content = package_data(experiment, " ".join(["python -m loraga.lab.search", *words]), runs, choose(runs))
    options.write.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
