"""Rows of data as plain dicts, drawn by a seed.

    file or hub data set --shuffled by the seed--> held out | validation | train, each with its number in the data
    reasoning-gym task   --its items, all different--> held out | validation | train

The held-out rows are taken first, then those for validation, so that they stay the same however many rows are trained
on. The recipe's task preprocesses each row, and may drop it.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, SettingsError
from .gym_task import GYM, find_task
from .recipe_check import DATA_FILES, nearest
from .tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    from .recipe import Recipe
    from .tasks.task import Change

OPTIONS_OF_THE_RECIPE = {
    "path": "write data",
    "split": "write split and held_out_split",
    "streaming": "data sets are read as a whole",
    "token": "is a secret, and recipes are kept and shown; log in with `hf auth login`",
    "storage_options": "may hold secrets, and recipes are kept and shown; set them in the environment",
    "trust_remote_code": "data sets that are Python code are not read",
}


class Row(dict[str, Any]):
    """One row, {column: value}.

    Args:
        columns: its columns.
        number: which row of its data it is, from 1; messages name it.
    """

    def __init__(self, columns: Mapping[str, Any], number: int) -> None:
        super().__init__(columns)
        self.number = number


@dataclass(frozen=True)
class Rows:
    """The rows of one training run.

    Attributes:
        train: rows to train on, at least one.
        validation: rows out of the same data to choose settings by; none if the recipe asks for none.
        held_out: rows to evaluate on; none if the recipe names none.
        train_name: the data that `train` and `validation` come from, for messages.
        held_out_name: the data that `held_out` comes from; that of `train` if it was taken out of it.
        dropped: {data: rows that the task dropped on the way}.
    """

    train: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]]
    train_name: str
    held_out_name: str
    dropped: Mapping[str, int] = field(default_factory=dict)


def read_rows(recipe: Recipe) -> Rows:
    """Reads, or makes, the rows that a recipe trains and evaluates on.

    Args:
        recipe: names the data, and says how many rows are drawn by which seed.

    Returns:
        The rows; the same ones, in the same order, for the same recipe.

    Raises:
        DataError: if the data cannot be read, holds no row, or holds too few.
        SettingsError: if an option of the data is wrong.
    """
    seed = recipe.seed if recipe.data_seed is None else recipe.data_seed
    if recipe.data.startswith(GYM):
        return _rows_of_a_task(recipe, seed)
    task = None if recipe.task is None else TASKS[recipe.task]
    source, name = _open(recipe.data, recipe.split, recipe.data_options)
    data = _Draw(
        source, name, _shuffled(len(source), seed), None if task is None else (task.train_columns, task.train_row)
    )
    taken_out = (recipe.held_out_rows or 0 if recipe.held_out is None else 0) + (recipe.validation_rows or 0)
    if taken_out >= len(source):
        keys = ("validation_rows",) if recipe.held_out is not None else ("held_out_rows", "validation_rows")
        asked = " and ".join(f"{key}: {getattr(recipe, key)}" for key in keys if getattr(recipe, key))
        raise DataError(f"{name} holds {len(source)} rows, and {asked} leaves none to train on")
    other = data
    if recipe.held_out is None:
        held_out = data.take(recipe.held_out_rows or 0)
    else:
        if recipe.held_out.startswith(GYM):
            raise SettingsError("held_out is a reasoning-gym task; its rows are held out of data, so name it there")
        other_source, other_name = _open(recipe.held_out, recipe.held_out_split, _held_out_options(recipe))
        order = _shuffled(len(other_source), seed)
        other = _Draw(other_source, other_name, order, None if task is None else (task.test_columns, task.test_row))
        held_out = other.take(recipe.held_out_rows)
        if not held_out:
            raise DataError(f"{other_name} holds no row that task: {recipe.task} keeps")
    validation = data.take(recipe.validation_rows or 0)
    train = data.take(recipe.rows)
    if not train:
        raise DataError(f"{name} holds no row to train on that task: {recipe.task} keeps")
    dropped = {each.name: each.dropped for each in (data, other) if each.dropped}
    return Rows(train, validation, held_out, name, other.name, dropped)


@dataclass
class _Draw:
    """Rows that are taken one part after another out of a source, in an order.

    Attributes:
        source: a list of dicts or a datasets.Dataset.
        name: what messages call it.
        order: which rows are left, in the order in which they are taken.
        task: the columns that a row needs, and what is done to it; None for nothing.
        dropped: rows that the task dropped so far.
    """

    source: Any
    name: str
    order: list[int]
    task: tuple[Sequence[str], Change] | None
    dropped: int = 0

    def take(self, count: int | None) -> list[Row]:
        """The next rows that are kept, `count` of them if there are so many; None for all, as they stand."""
        if count is None:
            self.order.sort()
        kept: list[Row] = []
        while self.order and (count is None or len(kept) < count):
            wanted = len(self.order) if count is None else count - len(kept)
            some, self.order = self.order[:wanted], self.order[wanted:]
            made = [self._changed(row) for row in _read(self.source, some)]
            kept += [row for row in made if row is not None]
            self.dropped += made.count(None)
        return kept

    def _changed(self, row: Row) -> Row | None:
        if self.task is None:
            return row
        try:
            return changed(row, *self.task)
        except DataError as cause:
            raise DataError(f"row {row.number} of {self.name} {cause}") from cause


def changed(row: Row, columns: Sequence[str], change: Change) -> Row | None:
    """A row as a task preprocesses it.

    Args:
        row: as it was read.
        columns: those that the task needs.
        change: what it does.

    Returns:
        The row, or None if the task drops it.

    Raises:
        DataError: if a column is missing.
    """
    for column in columns:
        require_column(row, column)
    made = change(row)
    return None if made is None else Row(made, row.number)


def require_column(row: Mapping[str, Any], column: str) -> None:
    """Refuses a row that lacks a column, and names the nearest one that it has."""
    if column not in row:
        meant = nearest(column, row)
        hint = f"; did you mean {meant}?" if meant else ""
        raise DataError(f"has no column {column} (its columns: {', '.join(map(str, row)) or 'none'}){hint}")


def _held_out_options(recipe: Recipe) -> Mapping[str, Any]:
    if recipe.held_out_options is not None:
        return recipe.held_out_options
    return recipe.data_options if _are_alike(recipe.data, str(recipe.held_out)) else {}


def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _read(source: Any, order: list[int]) -> list[Row]:
    # to_list() leaves images and sounds in their bytes, whose decoders need more packages
    made = [source[index] for index in order] if isinstance(source, list) else source.select(order).to_list()
    return [Row(columns, index + 1) for index, columns in zip(order, made, strict=True)]


def _are_alike(name: str, other: str) -> bool:
    """Whether the options of one data set are meant for the other too."""
    return name == other or (Path(name).suffix == Path(other).suffix and Path(name).suffix in DATA_FILES)


def _open(name: str, split: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """A list of dicts or a datasets.Dataset, not empty, and what messages call it."""
    for key in options:
        if key in OPTIONS_OF_THE_RECIPE:
            raise SettingsError(f"data_options has {key}: {OPTIONS_OF_THE_RECIPE[key]}")
    path = Path(name).expanduser()
    source: Any
    if path.suffix not in DATA_FILES:
        source, name = _load_dataset(name, name, split, options), f"{name} ({split})"
    elif not path.is_file():
        raise DataError(f"{name} is not there")
    elif path.suffix in (".jsonl", ".json"):
        if options:
            raise SettingsError(f"data_options mean nothing with {name}, which is read as it is; remove them")
        source = _read_json(path, name)
    elif path.suffix == ".csv":
        source = _read_csv(path, name, options)
    else:
        source = _load_dataset("parquet", name, "train", {**options, "data_files": str(path)})
    if not len(source):
        raise DataError(f"{name} holds no row")
    return source, name


def _read_json(path: Path, name: str) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else "it is no UTF-8 text"
        raise DataError(f"{name} cannot be read: {reason}") from cause
    if path.suffix == ".json" and text.lstrip().startswith("["):
        rows = [(f"{name}, object {number}", row) for number, row in enumerate(_parsed(text, name), start=1)]
    else:
        lines = text.split("\n")  # not splitlines(), which breaks lines at characters that JSON allows inside a text
        places = [(f"{name}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
        rows = [(where, _parsed(line, where)) for where, line in places]
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f'{where} is no object; write {{"column": value, ...}}')
    return [row for _, row in rows]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as cause:
        place = f"column {cause.colno}" if cause.lineno == 1 else f"line {cause.lineno}, column {cause.colno}"
        raise DataError(
            f"{where} is no JSON ({cause.msg}, {place}); write one object a line, or in a .json file a list of objects"
        ) from cause
    except (ValueError, RecursionError) as cause:  # a number of thousands of digits, brackets without end
        raise DataError(f"{where} cannot be read ({_in_one_line(cause)})") from cause


def _read_csv(path: Path, name: str, options: Mapping[str, Any]) -> Any:
    """Reads every column as the text it is: guessed types would make 007 a 7, 3 beside 2.5 a 3.0, and NA nothing."""
    given = {"keep_default_na": False, **options, "data_files": str(path)}
    if "features" not in given:
        head = _load_dataset("csv", name, "train", {**given, "nrows": 1})
        datasets = _datasets()
        given["features"] = datasets.Features({each: datasets.Value("string") for each in head.column_names})
    return _load_dataset("csv", name, "train", given)


def _load_dataset(builder: str, name: str, split: str, options: Mapping[str, Any]) -> Any:
    datasets = _datasets()
    try:
        return datasets.load_dataset(builder, split=split, **options)
    except datasets.exceptions.DatasetNotFoundError as cause:
        raise DataError(
            f"{name} is no data set that can be read from the hub; check the name, or, if access to it was granted to "
            f"you, log in with `hf auth login` ({_in_one_line(cause)})"
        ) from cause
    except ConnectionError as cause:
        raise DataError(
            f"the data set {name} is not on this machine, and the hub cannot be reached; connect (with HF_HUB_OFFLINE "
            f"unset), or name a local {', '.join(DATA_FILES)} file ({_in_one_line(cause)})"
        ) from cause
    except Exception as cause:  # the readers behind load_dataset raise whatever their libraries do
        raise DataError(f"{name} cannot be read; check split and data_options ({_in_one_line(cause)})") from cause


def _datasets() -> ModuleType:
    try:
        import datasets  # type: ignore[import-untyped]  # has no annotations
    except ImportError as cause:
        raise DataError(
            "data sets, .csv and .parquet are read by a missing package: pip install 'loraga[lab]'"
        ) from cause
    return datasets


def _in_one_line(error: BaseException) -> str:
    while error.__cause__ is not None and type(error).__name__.startswith("DatasetGeneration"):
        error = error.__cause__  # the outer one says only that something went wrong
    return " ".join(str(error).split())[:300] or type(error).__name__


def _rows_of_a_task(recipe: Recipe, seed: int) -> Rows:
    name = recipe.data
    if recipe.rows is None:
        raise SettingsError(f"rows is missing; {name} has rows without end, so say how many to make")
    counts = [recipe.held_out_rows or 0, recipe.validation_rows or 0, recipe.rows]
    task = None if recipe.task is None else TASKS[recipe.task]
    items = find_task(name, recipe.data_options).items(seed)
    read = (Row({"question": item.question, "answer": item.answer}, number) for number, item in enumerate(items, 1))
    made: Iterator[Row] = read
    if task is not None:
        made = (row for each in read if (row := changed(each, task.train_columns, task.train_row)) is not None)
    held_out, validation, train = (list(islice(made, count)) for count in counts)
    if len(train) < recipe.rows:
        found = len(held_out) + len(validation) + len(train)
        raise DataError(
            f"{name} has too few different questions: {found} for the {sum(counts)} of held_out_rows, validation_rows "
            "and rows; ask for fewer, or widen the task by data_options"
        )
    return Rows(train, validation, held_out, name, name)
