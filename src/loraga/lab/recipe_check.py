"""From what somebody wrote to a Recipe, or to one line for each thing that is wrong with it.

Everything that can be known without the model and the data is checked here, and nothing heavy is imported.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from .errors import RecipeError
from .foreign_keys import FOREIGN_KEYS
from .recipe import REFUSED, Recipe, contradictions
from .recipe_file import Written, read_overrides, read_recipe_file
from .tasks import TASKS
from .training_argument_names import TRAINING_ARGUMENT_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OWN_KEYS = tuple(each.name for each in fields(Recipe) if each.name != "trainer")
MOST = 2**31 - 1  # of a whole number: seeds and sizes go to libraries that count in 32 bits
DATA_FILES = (".jsonl", ".json", ".csv", ".parquet")


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe file, applies the command line's changes, and checks the result.

    Args:
        path: a YAML file.
        overrides: key=value, --key=value or --key value.

    Returns:
        The recipe, with its output folder resolved.

    Raises:
        RecipeError: one line for each thing that is wrong, with its place and the remedy.
    """
    folder = {"output_dir": Written(str(Path("runs") / path.stem), "the default")}
    return check(folder | read_recipe_file(path) | read_overrides(overrides, text_keys()))


def recipe_of_model(model: str, overrides: Iterable[str]) -> Recipe:
    """Makes the recipe that the command line alone writes.

    Args:
        model: the value of the key model.
        overrides: every other key, as key=value, --key=value or --key value.

    Returns:
        The recipe.

    Raises:
        RecipeError: one line for each thing that is wrong.
    """
    return check({"model": Written(model, "the command line")} | read_overrides(overrides, text_keys()))


def check(written: Mapping[str, Written]) -> Recipe:
    """Makes a recipe of written values.

    Args:
        written: {key: Written}, in any order.

    Returns:
        The recipe.

    Raises:
        RecipeError: one line for each thing that is wrong.
    """
    written = _with_task(written)
    problems = [_at(written[key], text) for key in written if (text := _unknown(key)) is not None]
    values = {key: each.value for key, each in written.items()}
    own = {key: value for key, value in values.items() if key in OWN_KEYS}
    trainer = {key: value for key, value in values.items() if key not in OWN_KEYS and key in TRAINING_ARGUMENT_NAMES}
    try:
        recipe = Recipe(**own, trainer=trainer)
    except ValidationError as error:
        wrong = dict.fromkeys(str(each["loc"][0]) for each in error.errors(include_url=False))
        problems += [_of_value(key, written) for key in wrong]
        raise RecipeError(problems) from error
    problems += [
        _at(written[key], f"{key} is too large: the most is {MOST}")
        for key, value in own.items()
        if isinstance(value, int) and abs(value) > MOST
    ]
    contradicting = missing_files(recipe) | contradictions(recipe, _chosen(recipe))
    problems += [_at(written.get(key), f"{key} {text}") for key, text in contradicting.items()]
    if problems:
        raise RecipeError(problems)
    return recipe


def _with_task(written: Mapping[str, Written]) -> Mapping[str, Written]:
    """The written keys, with those that the task sets where nothing is written."""
    name = written["task"].value if "task" in written else None
    if not isinstance(name, str) or name not in TASKS:
        return written
    added = TASKS[name].missing_keys({key: each.value for key, each in written.items()})
    return {**written, **{key: Written(value, f"task: {name}") for key, value in added.items()}}


def missing_files(recipe: Recipe) -> dict[str, str]:
    """{key: what is wrong} for each path of a recipe that leads nowhere.

    What looks like a path (a known suffix, or a leading `.`, `/` or `~`) is one; the rest are names on the hub.
    """
    found = {}
    if _is_path(recipe.model, (".gguf",)) and not _path(recipe.model).exists():
        found["model"] = f"names {recipe.model}, which is not there"
    for key in ("data", "held_out"):
        name = getattr(recipe, key)
        if name is not None and _is_path(name, DATA_FILES):
            path = _path(name)
            if not path.exists():
                found[key] = f"names {name}, which is not there"
            elif not path.is_file() or path.suffix not in DATA_FILES:
                found[key] = f"names {name}, which is no {', '.join(DATA_FILES)} file"
    if recipe.gradients is not None and not _path(recipe.gradients).is_file():
        found["gradients"] = f"names {recipe.gradients}, which is not there; `loraga estimate` makes it"
    if recipe.judge_references is not None and not _path(recipe.judge_references).is_file():
        found["judge_references"] = f"names {recipe.judge_references}, which is not there"
    if recipe.output_dir is not None and _path(recipe.output_dir).is_file():
        found["output_dir"] = f"names {recipe.output_dir}, which is a file, not a folder"
    return found


def expected(key: str) -> str:
    """What a key takes, in words: "a whole number of at least 1"."""
    return words(schema()["properties"][key])


def words(made: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words; of an unusual one just that it is a value."""
    if "anyOf" in made:
        return ", or ".join(dict.fromkeys(words(each) for each in made["anyOf"]))
    if "const" in made:
        return str(made["const"])
    if "enum" in made:
        return f"one of {', '.join(made['enum'])}"
    limits = [text.format(f"{made[name]:g}") for name, text in _LIMITS.items() if name in made]
    return f"{_TYPES.get(made.get('type', ''), 'a value')} {' and '.join(limits)}".strip()


def shown(value: Any) -> str:
    """A value as a message quotes it."""
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of a recipe, for editors."""
    made = TypeAdapter(Recipe).json_schema()
    properties = {key: value for key, value in made["properties"].items() if key != "trainer"}
    for value in properties.values():
        value.pop("title", None)
    for each in fields(Recipe):
        if each.name in properties and each.default_factory is not MISSING:
            properties[each.name]["default"] = each.default_factory()
    note = "passed to transformers.TrainingArguments"
    others = properties.keys() | REFUSED.keys()
    passed = {name: {"description": note} for name in TRAINING_ARGUMENT_NAMES if name not in others}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "loraga recipe",
        "type": "object",
        "properties": properties | passed,
        "required": [key for key in made["required"] if key != "data"],
        "anyOf": [{"required": ["data"]}, {"required": ["task"]}],
        "additionalProperties": False,
    }


def nearest(word: str, among: Iterable[str]) -> str | None:
    """The likeliest of the words that somebody meant, or None if none is near."""
    found = difflib.get_close_matches(word.lower(), list(among), n=1, cutoff=0.6)
    return found[0] if found else None


def _is_path(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(suffixes) or Path(name).is_file()


def text_keys() -> frozenset[str]:
    """The keys that take nothing but text."""
    found = set()
    for key, made in schema()["properties"].items():
        types = {each.get("type") for each in made.get("anyOf", [made])}
        if types <= {"string", "null"} and "enum" not in made:
            found.add(key)
    return frozenset(found)


def _chosen(recipe: Recipe) -> frozenset[str]:
    """The keys that differ from their default: a recipe with every default written out means the same."""
    defaults = {
        each.name: each.default_factory()
        if each.default is MISSING and each.default_factory is not MISSING
        else each.default
        for each in fields(Recipe)
    }
    return frozenset(key for key, default in defaults.items() if getattr(recipe, key) != default)


def _path(name: str) -> Path:
    """The path of a name; that of a home folder which nobody has is kept as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _unknown(key: str) -> str | None:
    if key in OWN_KEYS or key in TRAINING_ARGUMENT_NAMES:
        return None
    if key in FOREIGN_KEYS:
        return f"{key} is no key here: {FOREIGN_KEYS[key]}"
    meant = nearest(key, (*OWN_KEYS, *TRAINING_ARGUMENT_NAMES))
    return f"there is no key {key}" + (f"; did you mean {meant}?" if meant else "; `loraga train --help` lists them")


def _of_value(key: str, written: Mapping[str, Written]) -> str:
    if key not in written:
        return f"{key} is missing; it takes {expected(key)}: {_property(key)['description']}"
    value = written[key].value
    text = f"{key} takes {expected(key)}, not {shown(value)}"
    made = _property(key)
    choices = [choice for each in made.get("anyOf", [made]) for choice in each.get("enum", ())]
    meant = nearest(value, choices) if isinstance(value, str) else None
    return _at(written[key], text + (f"; did you mean {meant}?" if meant else ""))


def _at(written: Written | None, text: str) -> str:
    return text if written is None else f"{written.where}: {text}"


def _property(key: str) -> dict[str, Any]:
    return schema()["properties"][key]


_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "nothing",
    "array": "a list",
    "object": "a mapping",
}
_LIMITS = {
    "minimum": "of at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
