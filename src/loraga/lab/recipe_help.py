"""A recipe's methods and keys as help text and as the tables of docs/recipes.md, read from their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .methods import METHODS
from .recipe_check import schema, shown, words


@dataclass(frozen=True)
class Key:
    """One key, in words."""

    name: str
    takes: str
    default: str
    what: str

    @property
    def help(self) -> str:
        """Its line in `loraga train --help`."""
        return f"{self.what} [{self.takes}; {self.default}]"


def groups() -> dict[str, list[Key]]:
    """The recipe's own keys by group, in the order in which they are defined."""
    found: dict[str, list[Key]] = {}
    made = schema()
    for name, value in made["properties"].items():
        if "group" in value:
            default = f"default {_plain(value.get('default'))}"
            if "default" not in value:
                default = "needed" if name in made["required"] else "needed without task"
            found.setdefault(value["group"], []).append(Key(name, words(value), default, value["description"]))
    return found


def page() -> str:
    """All of it as Markdown: the methods, then the keys."""
    return f"{methods_table()}\n\n{table()}"


def methods_table() -> str:
    """Every method as Markdown: what it is, and what is its own in a recipe."""
    lines = ["## Methods", "", "| method | called | what | its own |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        own = [f"`{key}`" for key in method.keys]
        own += [f"`{key}: {_plain(value)}` in its paper's recipes" for key, value in method.defaults.items()]
        own += ["no `learning_rate: auto`"] if method.no_auto else []
        own += ["no `loraga init`"] if method.no_init else []
        lines.append(f"| `{name}` | {method.title} | {method.what} | {', '.join(own)} |")
    return "\n".join(lines)


def table() -> str:
    """Every key as Markdown, and the names that go to TrainingArguments."""
    lines = []
    for group, keys in groups().items():
        lines += [f"## {group.capitalize()}", "", "| key | takes | default | what |", "|---|---|---|---|"]
        lines += [
            f"| `{key.name}` | {key.takes} | {key.default.removeprefix('default ')} | {key.what} |" for key in keys
        ]
        lines += [""]
    passed = ", ".join(f"`{name}`" for name, value in schema()["properties"].items() if "group" not in value)
    return "\n".join([*lines, "## Passed to transformers.TrainingArguments", "", passed])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "none" if value is None else shown(value)
