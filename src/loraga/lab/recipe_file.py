"""Recipes as YAML: read strictly, changed by the command line's key=value, written with every value resolved.

    file --YAML--> {key: Written(value, where)} --overrides--> the same --check--> Recipe

YAML is read as its version 1.2 says, which is what people expect: 1e-3 is a number, and no, on and off are words. A key
that stands twice is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import yaml

from .errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from pathlib import Path

    from .recipe import Recipe


@dataclass(frozen=True)
class Written:
    """A value as somebody wrote it, and where: "recipe.yaml, line 3", or the command line."""

    value: Any
    where: str


NOTHING, QUOTES = ("", "~", "null"), ("'", '"')
NOT_JSON = ("timestamp", "binary", "set", "omap", "pairs")  # YAML's types that neither JSON nor a recipe has


class _Loader(yaml.SafeLoader):
    """Plain data only, with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's own name

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep)
        if len(made) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands there twice", node.start_mark)
        return made


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), None)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN)$"),
    None,
)


_Loader.yaml_constructors = {
    tag: made for tag, made in yaml.SafeLoader.yaml_constructors.items() if str(tag).rpartition(":")[2] not in NOT_JSON
}


def _plain_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # YAML 1.1 reads 010 as eight


_Loader.add_constructor("tag:yaml.org,2002:int", _plain_int)


class _Dumper(yaml.SafeDumper):
    """Quotes text that version 1.1 or 1.2 of YAML would not read as text: "no", "1e-3", "08"."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {**yaml.SafeDumper.yaml_implicit_resolvers, **_Loader.yaml_implicit_resolvers}
}


def read_recipe_file(path: Path) -> dict[str, Written]:
    """Reads a recipe's keys, without asking whether they mean anything.

    Args:
        path: a YAML file.

    Returns:
        {key: its value and its line}.

    Raises:
        RecipeError: if there is no such file, it is no YAML, not a list of "key: value", or a key stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else "it is no UTF-8 text"
        raise RecipeError([f"{path} cannot be read: {reason}"]) from cause
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as cause:
        raise RecipeError([_of_yaml(cause, path)]) from cause
    except RecursionError as cause:
        raise RecipeError([f"{path}: this is nested too deeply"]) from cause
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise RecipeError([f"{path} holds no recipe: write one 'key: value' a line"])
    written: dict[str, Written] = {}
    for key_node, value_node in node.value:
        where = f"{path}, line {key_node.start_mark.line + 1}"
        key = str(key_node.value)
        if key in written:
            raise RecipeError([f"{where}: {key} stands there twice (before in line {_line(written[key])})"])
        try:
            written[key] = Written(loader.construct_object(value_node, deep=True), where)
        except yaml.YAMLError as cause:
            raise RecipeError([_of_yaml(cause, path)]) from cause
        except (ValueError, RecursionError) as cause:  # a tag that its text does not fit: !!int abc
            raise RecipeError([f"{where}: {key} has no value that its tag allows ({cause})"]) from cause
    return written


def read_overrides(words: Iterable[str], text_keys: Container[str] = ()) -> dict[str, Written]:
    """Reads key=value, --key=value and --key value from a command line.

    Args:
        words: what stands there after the recipe.
        text_keys: keys whose value is the text as it stands, as in "prompt=Q: {question} #1", unless it is quoted
            or null.

    Returns:
        {key: its value}; the last one of a key counts.

    Raises:
        RecipeError: if a word is none of these, or a value is no YAML.
    """
    written: dict[str, Written] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--"):
                raise RecipeError([f"{word!r} is no key=value; write --help to see what there is"])
            if not rest:
                raise RecipeError([f"{word} has no value after it"])
            text = rest.pop(0)
        key = key.replace("-", "_")
        is_text = key in text_keys and text not in NOTHING and text[:1] not in QUOTES
        written[key] = Written(text if is_text else _value(key, text), "the command line")
    return written


def _value(key: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as cause:
        raise RecipeError([f"{key}: {text!r} is no YAML value ({_problem(cause)})"]) from cause
    except (ValueError, RecursionError) as cause:
        raise RecipeError([f"{key}: the command line has a value that cannot be read ({cause})"]) from cause


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe as flat {key: value}, as it would be written down: TrainingArguments' names beside our own."""
    values = {each.name: getattr(recipe, each.name) for each in fields(recipe) if each.name != "trainer"}
    return values | dict(recipe.trainer)


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML, with every default written out."""
    return yaml.dump(recipe_values(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _of_yaml(error: yaml.YAMLError, path: Path) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
    return f"{where}: this is no YAML ({_problem(error)})"


def _problem(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _line(written: Written) -> str:
    return written.where.rpartition("line ")[2]
