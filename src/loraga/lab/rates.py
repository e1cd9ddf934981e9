"""The learning rates that the search found for the demo, kept with the command and the numbers behind them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FILE = "demo_rates.json"


@dataclass(frozen=True)
class Rates:
    """Peak learning rates.

    Attributes:
        best: {method: the rate with its lowest validation loss}.
        common: the rate with the lowest validation loss in the mean over the methods.
    """

    best: Mapping[str, float]
    common: float


def stored_search() -> dict[str, Any]:
    """The search that comes with the package: its command, settings, numbers and choice."""
    return json.loads(resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8"))


def stored() -> Rates:
    """The rates that come with the package."""
    content = stored_search()
    return Rates(best=content["best"], common=content["common"])


def choose(runs: Iterable[tuple[str, float, float]]) -> Rates:
    """Chooses rates from finished runs.

    Args:
        runs: (method, learning rate, held-out loss) of each; a loss that is not finite never wins.

    Returns:
        The best rate of each method, and of the rates that all methods tried the best common one.
    """
    losses: dict[str, dict[float, float]] = {}
    for method, rate, loss in runs:
        losses.setdefault(method, {})[rate] = loss if math.isfinite(loss) else math.inf
    shared = set.intersection(*(set(tried) for tried in losses.values()))
    return Rates(
        best={method: min(tried, key=tried.__getitem__) for method, tried in losses.items()},
        common=min(sorted(shared), key=lambda rate: sum(tried[rate] for tried in losses.values())),
    )
