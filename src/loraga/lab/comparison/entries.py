"""What a table has a row for: a variant at a rank, with the runs that count for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .results import Measured, Results, Run

Quantity = Literal["score", "loss"]
Where = Literal["test", "validation"]


@dataclass(frozen=True)
class Entry:
    """A variant at a rank.

    Attributes:
        variant: its name.
        rank: of the adapter; None where all parameters are trained.
        best_rate: the learning rate that was chosen on validation rows; None if no run is done.
        is_inside: whether a lower and a higher rate were tried and were worse.
        runs: all of them, in the order of the grid.
    """

    variant: str
    rank: int | None
    best_rate: float | None
    is_inside: bool
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The variant, with its rank if it has one."""
        return self.variant if self.rank is None else f"{self.variant}, rank {self.rank}"

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the grid, upwards; those of `auto` runs are none of it."""
        return tuple(sorted({run.learning_rate for run in self.runs if not run.is_auto and run.learning_rate}))

    @property
    def tried(self) -> tuple[float, ...]:
        """Those of them that a run was carried out at, to its end or until it diverged."""
        return tuple(rate for rate in self.rates if any(run.status in ("done", "diverged") for run in self.at(rate)))

    @property
    def best(self) -> tuple[Run, ...]:
        """The finished runs at the best rate, by seed."""
        return () if self.best_rate is None else done(self.at(self.best_rate))

    @property
    def auto(self) -> tuple[Run, ...]:
        """The runs whose rate was suggested, whatever became of them, by seed."""
        return _by_seed(run for run in self.runs if run.is_auto)

    def at(self, rate: float) -> tuple[Run, ...]:
        """The runs at a rate of the grid, whatever became of them, by seed."""
        return _by_seed(run for run in self.runs if not run.is_auto and run.learning_rate == rate)


def entries_of(results: Results) -> tuple[Entry, ...]:
    """An entry for each variant and rank, in the order of the grid, also where no run is done."""
    chosen = {(each.variant, each.rank): each for each in results.best}
    found = []
    for variant, rank in dict.fromkeys((run.variant, run.rank) for run in results.runs):
        best = chosen.get((variant, rank))
        runs = tuple(run for run in results.runs if (run.variant, run.rank) == (variant, rank))
        rate, is_inside = (None, False) if best is None else (best.learning_rate, best.is_inside)
        found.append(Entry(variant, rank, rate, is_inside, runs))
    return tuple(found)


def reference_of(entry: Entry, entries: tuple[Entry, ...], reference: str) -> Entry | None:
    """What an entry is compared with: the reference at its rank, or else at the first rank that it was run at.

    Args:
        entry: the one.
        entries: all of them.
        reference: the reference's variant.

    Returns:
        An entry with a finished run at its best rate, or None if there is none.
    """
    candidates = [each for each in entries if each.variant == reference and each.best]
    return next((each for each in candidates if each.rank == entry.rank), candidates[0] if candidates else None)


def done(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The finished ones."""
    return tuple(run for run in runs if run.status == "done")


def measured(run: Run, where: Where) -> Measured | None:
    """What was measured of a run on these rows."""
    return run.test if where == "test" else run.validation


def values(runs: Iterable[Run], quantity: Quantity, where: Where) -> dict[int, float]:
    """A quantity of each finished run, by seed; runs without it are left out."""
    found = {}
    for run in done(runs):
        on = measured(run, where)
        value = None if on is None else getattr(on, quantity)
        if value is not None:
            found[run.seed] = value
    return found


def headline(results: Results) -> Quantity:
    """What the comparison is about: the score if answers were judged, or else the loss."""
    if results.metric == "none":
        return "loss"
    where = shown_rows(results)
    return "score" if any(values([run], "score", where) for run in results.runs) else "loss"


def shown_rows(results: Results) -> Where:
    """The rows whose figures are shown: the test rows, or the validation rows where no test row was measured."""
    return "test" if any(run.test is not None for run in results.runs) else "validation"


def _by_seed(runs: Iterable[Run]) -> tuple[Run, ...]:
    return tuple(sorted(runs, key=lambda run: run.seed))
