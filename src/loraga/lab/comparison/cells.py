"""The cells of a comparison: which there are, in which order, and which come next once others are done.

    grid:       each variant x rank x learning rate, at the first seed (other_seeds: all: at every seed), and auto
    search:     the rate outside, as long as a variant's best one lies at an edge
    best rate:  the other seeds

What comes next depends on nothing but what came out, so an interrupted comparison goes on to the same cells.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import RecipeError
from ..methods import METHODS
from ..run_folder import folder_of
from .results import Best

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..recipe import Recipe
    from .comparison import Comparison, Grid, Variant

CELLS = "cells"
MOST_RATES = 10  # of a variant at a rank; where its best still lies at the edge then, the tables say so


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        variant: the method with its settings.
        rank: of the adapter, or None.
        learning_rate: the peak, or None for auto.
        seed: of the run.
        recipe: what is carried out.
    """

    variant: Variant
    rank: int | None
    learning_rate: float | None
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of its folder."""
        return _name(self.variant, self.rank, self.learning_rate, self.seed)

    @property
    def folder(self) -> Path:
        """Its folder."""
        return folder_of(self.recipe).path


# What a cell's learning rate is chosen by: lower is better, infinity if it diverged; None if it is not done.
Value = float | None


@dataclass(frozen=True)
class Plan:
    """All cells that are known now, in order, and the best rates of the variants that are searched through."""

    cells: tuple[Cell, ...]
    best: tuple[Best, ...]


def planned(comparison: Comparison, value_of: Callable[[str], Value], failed: Callable[[str], bool]) -> Plan:
    """Makes the plan.

    Args:
        comparison: what is compared.
        value_of: {name of a cell: what its rate is chosen by}.
        failed: whether a cell was tried and failed; it chooses nothing, and nothing waits for it.

    Returns:
        The cells, those of the grid first, and the best rate of each variant and rank.

    Raises:
        RecipeError: if a cell's recipe is wrong, two cells are equal, or a learning rate is to be chosen on no rows.
    """
    grid, later, best = [], [], []
    for variant in comparison.variants:
        for rank in variant.ranks(comparison.grid.ranks):
            first, searched, found = _of_variant(comparison, variant, rank, value_of, failed)
            grid += first
            later += searched
            best.append(found)
    cells = (*grid, *later)
    _require_different(cells)
    _require_rows_to_choose_on(comparison.grid, cells)
    return Plan(cells, tuple(best))


def _of_variant(
    comparison: Comparison,
    variant: Variant,
    rank: int | None,
    value_of: Callable[[str], Value],
    failed: Callable[[str], bool],
) -> tuple[list[Cell], list[Cell], Best]:
    """Cells of the grid, cells that follow from their outcomes, and the best rate."""
    seeds = comparison.grid.seeds
    searching = seeds if comparison.grid.other_seeds == "all" else seeds[:1]

    def at(rate: float | None, seed: int) -> Cell:
        folder = cell_folder(comparison.folder, _name(variant, rank, rate, seed))
        return Cell(variant, rank, rate, seed, comparison.recipe(variant, rank, rate, seed, folder))

    def name(rate: float, seed: int) -> str:
        return _name(variant, rank, rate, seed)

    rates = sorted(variant.learning_rates)
    grid = [at(rate, seed) for rate in rates for seed in searching]
    if comparison.grid.auto and not METHODS[variant.method].no_auto:
        grid += [at(None, seed) for seed in searching]
    later: list[Cell] = []
    while True:
        found = {rate: [value_of(name(rate, seed)) for seed in searching] for rate in rates}
        waiting = [
            rate
            for rate, values in found.items()
            for seed, value in zip(searching, values, strict=True)
            if value is None and not failed(name(rate, seed))
        ]
        known = {rate: mean for rate, values in found.items() if (mean := _mean(values)) is not None}
        further = None if waiting or not comparison.grid.search else next_rate(known, MOST_RATES)
        if further is None:
            break
        rates = sorted([*rates, further])
        later += [at(further, seed) for seed in searching]
    chosen = min(known, key=known.__getitem__, default=None)
    if chosen is not None and not math.isfinite(known[chosen]):
        chosen = None
    if not waiting and chosen is not None:
        later += [at(chosen, seed) for seed in seeds if seed not in searching]
    is_inside = chosen is not None and min(known) < chosen < max(known)
    return grid, later, Best(variant.title, rank, chosen, is_inside)


def next_rate(values: Mapping[float, float], most: int) -> float | None:
    """The rate to try after these.

    Args:
        values: {rate: what it is chosen by, lower is better, infinity if it diverged}.
        most: how many may be tried.

    Returns:
        Half the lowest or twice the highest rate, rounded to three digits; None if the best has a worse neighbour on
        either side, if all diverged at the lowest rate that is left to try, or if enough were tried.
    """
    if not values or len(values) >= most:
        return None
    best = min(values, key=lambda rate: (values[rate], rate))
    if best == min(values):
        return float(f"{best / 2:.3g}")
    return min(1.0, float(f"{best * 2:.3g}")) if best == max(values) and best < 1 else None


def cell_folder(folder: Path, name: str) -> Path:
    """The folder of a cell within that of its comparison."""
    return folder / CELLS / name


def name_part(title: str) -> str:
    """A variant's title as the names of its cells begin with it."""
    return re.sub(r"[^a-z0-9+.]+", "-", title.lower()).strip("-")


def _mean(values: list[Value]) -> Value:
    """The mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _name(variant: Variant, rank: int | None, learning_rate: float | None, seed: int) -> str:
    title = name_part(variant.title)
    rate = "auto" if learning_rate is None else f"{learning_rate:g}"
    return "_".join([title, *([] if rank is None else [f"r{rank}"]), f"lr{rate}", f"seed{seed}"])


def _require_different(cells: tuple[Cell, ...]) -> None:
    repeated = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
    if repeated:
        raise RecipeError([f"two cells are equal: {repeated[0]}; give one of the two methods another title"])
    settings = [str({**vars(cell.recipe), "output_dir": None}) for cell in cells]
    twice = next((cell.name for cell, each in zip(cells, settings, strict=True) if settings.count(each) > 1), None)
    if twice is not None:
        raise RecipeError([f"two cells are equal but for their title: {twice}; remove one of the two methods"])


def _require_rows_to_choose_on(grid: Grid, cells: tuple[Cell, ...]) -> None:
    """Refuses cells among whose learning rates one is to be chosen, and that measure nothing to choose it by."""
    rates: dict[tuple[str, int | None], set[float | None]] = {}
    for cell in cells:
        rates.setdefault((cell.variant.title, cell.rank), set()).add(cell.learning_rate)
    for cell in cells:
        if len(rates[cell.variant.title, cell.rank]) == 1 and not grid.search:
            continue
        if cell.recipe.validation_rows is None:
            problem = (
                f"validation_rows is missing, by which {cell.variant.title} would get its learning rate: one is never "
                "chosen on the test rows; say how many rows of data to set aside, or give one learning rate"
            )
            raise RecipeError([problem])
        if grid.choose_by == "score" and not cell.recipe.validation_metric:
            problem = (
                "choose_by: score needs validation_metric: true, so that answers to the validation rows are judged; "
                "write it, or choose_by: loss"
            )
            raise RecipeError([problem])
