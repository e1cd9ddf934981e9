"""The tasks as the tables of docs/tasks.md, read from their definitions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import TASKS

if TYPE_CHECKING:
    from .task import Task


def table() -> str:
    """Every task as Markdown: what it is, where its rows are from, and each key that it sets."""
    lines = ["| task | what | train on | evaluate on | metric | source |", "|---|---|---|---|---|---|"]
    lines += [f"| `{name}` | {_summary(task)} |" for name, task in TASKS.items()]
    for name, task in TASKS.items():
        lines += ["", f"## {task.title}", "", f"`task: {name}` needs the {_columns(task)}, and sets:", "", "```text"]
        lines += [*(f"{key}: {_shown(value)}" for key, value in task.keys.items()), "```"]
    return "\n".join(lines)


def _summary(task: Task) -> str:
    keys = task.keys
    test = keys.get("held_out", keys["data"])
    train = _rows(keys["data"], keys.get("data_options"), keys.get("split"), task.train_rows)
    if "held_out" in keys:
        evaluated = _rows(test, keys.get("held_out_options"), keys["held_out_split"], task.test_rows)
    else:
        train, evaluated = f"{train}, {keys['rows']:,} rows", f"{keys['held_out_rows']:,} other rows"
    return " | ".join((task.what, train, evaluated, f"`{keys['metric']}`", task.source))


def _rows(name: str, options: dict[str, str] | None, split: str | None, rows: int | None) -> str:
    part = ", ".join(each for each in ((options or {}).get("name"), split) if each)
    return f"{name}{f' ({part})' if part else ''}{f', {rows:,} rows' if rows else ''}"


def _columns(task: Task) -> str:
    train, test = ([f"`{column}`" for column in columns] for columns in (task.train_columns, task.test_columns))
    if task.train_columns == task.test_columns:
        return f"columns {_listed(train)}"
    return f"columns {_listed(train)} to train on{f', {_listed(test)} to evaluate on' if test else ''}"


def _listed(words: list[str]) -> str:
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]


def _shown(value: object) -> str:
    """A value as JSON, which YAML reads; a plain word as it is."""
    is_word = isinstance(value, str) and value.replace("_", "").isalnum()
    return str(value) if is_word else json.dumps(value, ensure_ascii=False)
