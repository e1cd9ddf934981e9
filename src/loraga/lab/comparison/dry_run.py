"""A comparison looked at without running it: every recipe made, local data read and written as text, and what it takes.

cells --recipes--> rows, label words, layers --> problems
                   lengths, shapes, speed ----> costs
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from loraga.errors import LoragaError

from ..arguments import training_arguments
from ..errors import RecipeError
from ..gym_task import GYM
from ..label_words import label_words
from ..metrics import METRICS
from ..model_shape import at_hand, shape_of, tokenizer_at_hand
from ..preparation import prepare
from ..prompts import Prompted, Segment, make_prompted
from ..quiet import quiet_libraries
from ..recipe_check import DATA_FILES, schema
from ..recipe_file import recipe_values
from ..rows import read_rows
from ..tasks import TASKS
from .cell_run import outcome_of
from .cells import MOST_RATES
from .estimate import OF_THE_PROCESS, Cost, RowLengths, cost_of, lengths_of, limits_of, most
from .speed import speed_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ..model_shape import ModelShape
    from ..recipe import Recipe
    from .cells import Cell, Plan
    from .comparison import Comparison
    from .speed import Speed

DATA_KEYS = ("model", "trust_remote_code")  # beside those of the groups data and evaluation
SHOWN_ROWS = 100  # of local data that are written as text where the tokenizer is not at hand


@dataclass(frozen=True)
class Group:
    """The cells of one method at one rank, which take about the same.

    Attributes:
        name: of the method, with its rank.
        to_do: cells of the plan that are not done.
        seeds: cells that follow at the best learning rate.
        searched: cells that a search may add at most.
        cost: of one cell at a given learning rate; None where it is not known.
        seconds: of such a cell, about.
        all_seconds: of the cells to do, those that suggest their learning rate too, and the seeds that follow.
        operations: of the same.
        memory: bytes of one cell at once, about.
    """

    name: str
    to_do: int
    seeds: int
    searched: int
    cost: Cost | None
    seconds: float | None
    all_seconds: float | None
    operations: float | None
    memory: float | None

    @property
    def cells(self) -> int:
        """The cells that are known to come."""
        return self.to_do + self.seeds


@dataclass(frozen=True)
class DryRun:
    """What a comparison takes.

    Attributes:
        groups: its methods at their ranks.
        done: cells that are done, or have diverged.
        speed: of this device.
        free: bytes that are free where its folder is.
        notes: what was not looked at, and what is not known.
    """

    groups: tuple[Group, ...]
    done: int
    speed: Speed
    free: int
    notes: tuple[str, ...]

    @property
    def cells(self) -> int:
        """The cells that are known to come."""
        return sum(group.cells for group in self.groups)

    @property
    def searched(self) -> int:
        """The cells that searches may add at most."""
        return sum(group.searched for group in self.groups)

    @property
    def seconds(self) -> float | None:
        """All cells one after another, without a search; None where one is not known."""
        return _sum([group.all_seconds for group in self.groups])

    @property
    def searched_seconds(self) -> float | None:
        """What searches may add at most."""
        return _sum([None if group.seconds is None else group.searched * group.seconds for group in self.groups])

    @property
    def memory(self) -> float | None:
        """The most of a cell."""
        known = [group.memory for group in self.groups if group.memory is not None]
        return max(known) if len(known) == len(self.groups) else None

    @property
    def disk(self) -> float | None:
        """Bytes: what all cells keep, and what one of them has while it runs."""
        costs = [(group.cells + group.searched, group.cost) for group in self.groups if group.cost is not None]
        if len(costs) < len(self.groups) or not costs:
            return None
        return sum(cells * cost.kept for cells, cost in costs) + max(cost.passing for _, cost in costs)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "cells": self.cells,
            "done": self.done,
            "cells_a_search_may_add": self.searched,
            "seconds": self.seconds,
            "seconds_a_search_may_add": self.searched_seconds,
            "operations": _sum([group.operations for group in self.groups]),
            "memory": self.memory,
            "disk": self.disk,
            "disk_free": self.free,
            "device": asdict(self.speed),
            "methods": [
                {
                    "name": group.name,
                    "cells": group.cells,
                    "cells_a_search_may_add": group.searched,
                    "seconds": group.all_seconds,
                    "seconds_a_cell": group.seconds,
                    "memory": group.memory,
                    "a_cell": None if group.cost is None else asdict(group.cost),
                }
                for group in self.groups
            ],
            "notes": list(self.notes),
        }


def dry_run(comparison: Comparison, plan: Plan, console: Console) -> DryRun:
    """Looks at everything of a comparison that can be looked at without weights and without a network.

    Args:
        comparison: what is compared.
        plan: its cells by now.
        console: told what was cut or dropped of the data.

    Returns:
        What it takes.

    Raises:
        RecipeError: a line for each thing that is wrong.
    """
    looked = _Looked(console)
    with quiet_libraries():
        costs = {cell.name: looked.cost(cell) for cell in plan.cells}
        if looked.problems:
            raise RecipeError(list(dict.fromkeys(looked.problems)))
        speed = speed_of(on_this_machine(plan.cells[0].recipe))
    ended = {cell.name for cell in plan.cells if is_over(cell)}
    groups = []
    for variant in comparison.variants:
        for rank in variant.ranks(comparison.grid.ranks):
            cells = [cell for cell in plan.cells if cell.variant.title == variant.title and cell.rank == rank]
            found = [costs[cell.name] for cell in cells]
            groups.append(_group(comparison, cells, found, ended, speed))
    folder = next(
        each for each in (comparison.folder.absolute(), *comparison.folder.absolute().parents) if each.is_dir()
    )
    return DryRun(tuple(groups), len(ended), speed, shutil.disk_usage(folder).free, tuple(looked.notes))


def _group(
    comparison: Comparison, cells: Sequence[Cell], costs: Sequence[Cost | None], ended: set[str], speed: Speed
) -> Group:
    grid, variant, rank = comparison.grid, cells[0].variant, cells[0].rank
    rates = {cell.learning_rate for cell in cells if cell.learning_rate is not None}
    later = len(grid.seeds) - 1 if grid.other_seeds == "best" and rates else 0
    seeds = later - (len({cell.seed for cell in cells}) - 1 if later else 0)
    searching = len(grid.seeds) if grid.other_seeds == "all" else 1
    plain = [cost for cell, cost in zip(cells, costs, strict=True) if cell.learning_rate is not None] or costs
    known = [cost for cost in plain if cost is not None]
    cost = most(known) if len(known) == len(plain) else None
    coming = [*(each for cell, each in zip(cells, costs, strict=True) if cell.name not in ended), *[cost] * seeds]
    return Group(
        name=variant.title if rank is None else f"{variant.title}, rank {rank}",
        to_do=len(coming) - seeds,
        seeds=seeds,
        searched=max(0, MOST_RATES - len(rates)) * searching if grid.search and rates else 0,
        cost=cost,
        seconds=None if cost is None else speed.seconds(cost),
        all_seconds=_sum([None if each is None else speed.seconds(each) for each in coming]),
        operations=_sum([None if each is None else each.operations for each in coming]),
        memory=None if cost is None else cost.memory + (OF_THE_PROCESS if speed.is_cpu else 0),
    )


def is_over(cell: Cell) -> bool:
    """Whether a cell has come to a result and is not run again."""
    outcome = outcome_of(cell.folder)
    return outcome is not None and outcome.status != "failed"


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


class _Looked:
    """Looks at models and data once each, and collects what is wrong and what could not be seen.

    Args:
        console: told what was cut or dropped of the data.
    """

    def __init__(self, console: Console) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._console = console
        self._shapes: dict[str, ModelShape | None] = {}
        self._rows: dict[str, RowLengths] = {}
        self._arguments: set[str] = set()

    def cost(self, cell: Cell) -> Cost | None:
        """What a cell takes; None where that is not known, which a note or a problem says."""
        recipe = cell.recipe
        try:
            self._check_arguments(cell)
            shape, rows = self._shape(recipe), self._lengths(recipe)
        except LoragaError as cause:
            self.problems += getattr(cause, "problems", [str(cause)])
            return None
        if shape is None:
            self._note(f"{recipe.model} is not on this machine and its shapes are not known, so no cost is")
            return None
        cost = cost_of(recipe, shape, rows)
        if cost is None:
            self._note(f"how many rows {recipe.data} has is not known; with rows or max_steps the cost would be")
        return cost

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _check_arguments(self, cell: Cell) -> None:
        if cell.variant.title not in self._arguments:
            self._arguments.add(cell.variant.title)
            if (recipe := on_this_machine(cell.recipe)) != cell.recipe:
                self._note("there is no GPU here, which bf16 or fp16 are meant for: costs are those of this CPU")
            training_arguments(recipe)

    def _shape(self, recipe: Recipe) -> ModelShape | None:
        key = json.dumps([recipe.model, recipe.target_modules])
        if key not in self._shapes:
            self._shapes[key] = shape_of(recipe)
            found = self._shapes[key]
            if found is not None and at_hand(recipe) is None:
                self._note(f"{recipe.model} is not on this machine: costs are those of its published shapes")
        return self._shapes[key]

    def _lengths(self, recipe: Recipe) -> RowLengths:
        groups, values = schema()["properties"], recipe_values(recipe)
        names = [
            key for key in values if key in DATA_KEYS or groups.get(key, {}).get("group") in ("data", "evaluation")
        ]
        key = json.dumps({name: values[name] for name in names}, default=str)
        if key not in self._rows:
            self._rows[key] = RowLengths(None, None, None)  # a problem is said once
            self._rows[key] = self._looked_at(recipe)
        return self._rows[key]

    def _looked_at(self, recipe: Recipe) -> RowLengths:
        on_hub = [name for name in (recipe.data, recipe.held_out) if name is not None and not is_local(name)]
        for name in dict.fromkeys(on_hub):
            self._note(f"{name} is on the hub and was not looked at")
        base = tokenizer_at_hand(recipe)
        if base is None:
            self._note(
                f"the tokenizer of {recipe.model} is not on this machine: tokens are at most sequence_length a row"
            )
        if not is_local(recipe.data):
            if base is not None:
                _check_label_words(base.load_tokenizer(), recipe)
            return _published(recipe)
        if recipe.held_out is not None and not is_local(recipe.held_out):
            recipe = replace(
                recipe, held_out=None, held_out_options=None, held_out_rows=None, held_out_split="test", metric="none"
            )
        if base is None:
            return self._written(recipe)
        prepared = prepare(replace(recipe, model=base.name), self._console)
        self._console.print(
            f"{recipe.data}: {len(prepared.train)} rows to train on, {len(prepared.validation)} for validation, "
            f"{len(prepared.held_out)} held out",
            highlight=False,
            markup=False,
        )
        train, evaluation = recipe.per_device_train_batch_size, recipe.per_device_eval_batch_size
        return RowLengths(
            lengths_of(prepared.train, train, base.is_encoder_decoder),
            lengths_of(prepared.validation, evaluation, base.is_encoder_decoder),
            lengths_of(prepared.held_out, evaluation, base.is_encoder_decoder),
        )

    def _written(self, recipe: Recipe) -> RowLengths:
        """Reads local rows, and writes the first of them as text where no tokenizer's template is needed."""
        rows = read_rows(recipe)
        if recipe.chat is None and recipe.template != "chat":
            for part, name, judged in (
                (rows.train, rows.train_name, False),
                (rows.validation, rows.train_name, recipe.validation_metric),
                (rows.held_out, rows.held_out_name, True),
            ):
                make_prompted(part[:SHOWN_ROWS], recipe, None, name, judged=judged)
        return RowLengths(
            *(limits_of(recipe, len(part) or None) for part in (rows.train, rows.validation, rows.held_out))
        )


def on_this_machine(recipe: Recipe) -> Recipe:
    """A recipe that transformers takes here: without a GPU it refuses bf16 and fp16, unless told to use none."""
    import torch

    mixes = recipe.trainer.get("bf16") or recipe.trainer.get("fp16")
    if not mixes or torch.cuda.is_available():
        return recipe
    return replace(recipe, trainer={**recipe.trainer, "use_cpu": True})


def is_local(name: str) -> bool:
    """Whether data are a file of this machine or made here, and no data set of the hub."""
    return name.startswith(GYM) or name.endswith(DATA_FILES)


def _check_label_words(tokenizer: Any, recipe: Recipe) -> None:
    """Looks at label words without a row; what a chat template would put around them is left to the run."""
    if METRICS[recipe.metric].judged_by == "label_words" and recipe.labels and recipe.template == "none":
        row = Prompted(
            (Segment(recipe.prompt or "", is_target=False), Segment(recipe.labels[0], is_target=True)), False
        )
        label_words(tokenizer, row, recipe)


def _published(recipe: Recipe) -> RowLengths:
    """The most that the rows of a data set on the hub can be, where the recipe or its task says how many they are."""
    task = None if recipe.task is None or recipe.data != TASKS[recipe.task].keys["data"] else TASKS[recipe.task]
    there = None if task is None else task.train_rows
    train = recipe.rows if there is None else min(there, recipe.rows or there) - (recipe.validation_rows or 0)
    held_out = recipe.held_out_rows
    if task is not None and task.test_rows is not None and recipe.held_out == task.keys.get("held_out"):
        held_out = min(task.test_rows, held_out or task.test_rows)
    return RowLengths(limits_of(recipe, train), limits_of(recipe, recipe.validation_rows), limits_of(recipe, held_out))
