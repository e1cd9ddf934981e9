"""What a task is: a name for recipe keys that belong together, and what is done to a row before it is text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Change = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]  # of a row; None drops it

DATA_KEYS = ("data", "data_options", "split")
HELD_OUT_KEYS = ("held_out", "held_out_options", "held_out_split")


def unchanged(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keeps a row as it is."""
    return row


@dataclass(frozen=True)
class Task:
    """A task: data and two small pure functions.

    Attributes:
        title: what people call it.
        what: one sentence on it.
        source: who made its data.
        keys: what it sets in a recipe that says nothing about these keys.
        train_columns: the columns that a row of `data` needs.
        test_columns: those that a row of `held_out` needs.
        train_row: preprocesses a row of `data`: it may add columns; None drops the row.
        test_row: the same of a row of `held_out`.
        train_rows: rows of the split to train on, where they have an end: for estimates without reading them.
        test_rows: rows of the split to evaluate on.
    """

    title: str
    what: str
    source: str
    keys: Mapping[str, Any]
    train_columns: tuple[str, ...]
    test_columns: tuple[str, ...]
    train_row: Change = field(default=unchanged)
    test_row: Change = field(default=unchanged)
    train_rows: int | None = None
    test_rows: int | None = None

    def missing_keys(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """What the task sets beside the keys of a recipe.

        Args:
            written: the recipe's keys. One that names its own `data` is not given the task's rows, neither to train nor
                to evaluate on; one that names its own `held_out`, not those to evaluate on.

        Returns:
            {key: value} of those that the recipe does not hold.
        """
        own: set[str] = set()
        if "data" in written:
            own |= {*DATA_KEYS, *HELD_OUT_KEYS}
        if "held_out" in written:
            own |= {*HELD_OUT_KEYS}
        return {key: value for key, value in self.keys.items() if key not in written and key not in own}
