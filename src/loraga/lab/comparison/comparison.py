"""What a comparison is, as data: methods x learning rates x ranks x seeds on one recipe, checked before anything runs.

    comparison.yaml --keys of Comparison--> grid
                    --all other keys-----> the recipe of every cell

A recipe's key that means nothing for a method, such as `rank` for full fine-tuning, is left out for that method.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from ..errors import RecipeError
from ..methods import METHODS
from ..recipe import meaningless_keys
from ..recipe_check import OWN_KEYS, check, nearest, shown, text_keys, words
from ..recipe_file import Written, read_overrides, read_recipe_file
from ..training_argument_names import TRAINING_ARGUMENT_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..recipe import Recipe

FOLDER = "comparisons"
OF_THE_GRID = {"method": "methods", "learning_rate": "learning_rates", "rank": "ranks", "seed": "seeds"}
OF_A_VARIANT = ("title", "learning_rates")  # keys of an entry of methods that are no recipe's keys

Rate = Annotated[float, Field(gt=0, le=1)]


def _key(text: str, **limits: Any) -> Any:
    return Field(description=text, **limits)


@checked_dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class Grid:
    """The keys of a comparison that are not those of a recipe."""

    methods: Annotated[
        list[str | dict[str, Any]],
        _key(
            "each a name, or a mapping: method, title, learning_rates of its own, and any keys of a recipe",
            min_length=1,
        ),
    ]
    learning_rates: Annotated[list[Rate], _key("peaks that every method is tried at")] = field(default_factory=list)
    ranks: Annotated[list[Annotated[int, Field(ge=1)]], _key("of the adapters", min_length=1)] = field(
        default_factory=lambda: [8]
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], _key("of the runs", min_length=1)] = field(
        default_factory=lambda: [0]
    )
    other_seeds: Annotated[
        Literal["best", "all"], _key("where the seeds after the first run: at each method's best rate, or at all")
    ] = "best"
    search: Annotated[
        bool, _key("extend the rates by factors of 2 until the best one of each method has a worse neighbour")
    ] = False
    auto: Annotated[bool, _key("run learning_rate: auto too, beside the grid")] = False
    choose_by: Annotated[
        Literal["loss", "score"], _key("what chooses a learning rate on the validation rows: the lowest loss, or ...")
    ] = "loss"
    reference: Annotated[str | None, _key("the title that the others are compared with; by default the first LoRA")] = (
        None
    )
    title: Annotated[str | None, _key("heading of the tables, figures and the page")] = None


GRID_KEYS = tuple(each.name for each in fields(Grid))


@dataclass(frozen=True)
class Variant:
    """A method with its settings.

    Attributes:
        title: how tables call it.
        method: its name in METHODS.
        keys: of a recipe, where it differs from the others.
        learning_rates: to try.
    """

    title: str
    method: str
    keys: Mapping[str, Any]
    learning_rates: tuple[float, ...]

    def ranks(self, ranks: Iterable[int]) -> tuple[int | None, ...]:
        """The ranks it is run at: none where all parameters are trained."""
        if not METHODS[self.method].adapter:
            return (None,)
        return (self.keys["rank"],) if "rank" in self.keys else tuple(ranks)


@dataclass(frozen=True)
class Comparison:
    """A checked comparison.

    Attributes:
        grid: its own keys.
        variants: the methods, in order.
        reference: the variant that the others are compared with.
        shared: the recipe's keys that all cells have, as they were written.
        folder: where it goes.
        name: of its file.
    """

    grid: Grid
    variants: tuple[Variant, ...]
    reference: str
    shared: Mapping[str, Written]
    folder: Path
    name: str

    def values(self) -> dict[str, Any]:
        """Every key that was written, as JSON values; the folder does not matter."""
        grid = {name: getattr(self.grid, name) for name in GRID_KEYS}
        return grid | {key: each.value for key, each in sorted(self.shared.items())}

    def recipe(
        self, variant: Variant, rank: int | None, learning_rate: float | None, seed: int, folder: Path
    ) -> Recipe:
        """The recipe of one cell.

        Args:
            variant: the method with its settings.
            rank: of the adapter, if it has one.
            learning_rate: the peak; None for auto.
            seed: of the run.
            folder: of the run.

        Returns:
            It, checked.

        Raises:
            RecipeError: if its keys do not fit together.
        """
        where = f"methods, {variant.title}"
        cell = {
            "method": variant.method,
            "learning_rate": "auto" if learning_rate is None else learning_rate,
            "seed": seed,
            "output_dir": str(folder),
            **({} if rank is None else {"rank": rank}),
        }
        useless = meaningless_keys(variant.method)
        shared = {key: each for key, each in self.shared.items() if key not in useless}
        own = {key: Written(value, where) for key, value in (dict(variant.keys) | cell).items()}
        return check(shared | own)


def load_comparison(path: Path, overrides: Iterable[str] = ()) -> Comparison:
    """Reads a comparison's file, applies the command line's changes, and checks its own keys.

    Args:
        path: a YAML file.
        overrides: key=value, --key=value or --key value.

    Returns:
        The comparison; `planned` makes its cells, and with them checks each recipe.

    Raises:
        RecipeError: one line for each thing that is wrong, with its place and the remedy.
    """
    written = read_recipe_file(path) | read_overrides(overrides, text_keys())
    problems = [
        _at(written[key], f"{key} is given by {OF_THE_GRID[key]} here") for key in OF_THE_GRID if key in written
    ]
    own = {key: each for key, each in written.items() if key in GRID_KEYS}
    known = (*GRID_KEYS, *OWN_KEYS, *TRAINING_ARGUMENT_NAMES)
    problems += [
        _at(written[key], f"there is no key {key}; did you mean {meant}?")
        for key in written
        if key not in known and (meant := nearest(key, GRID_KEYS)) is not None
    ]
    if problems:
        raise RecipeError(problems)
    grid = _grid(own, path)
    variants = _variants(grid, own["methods"])
    shared = {key: each for key, each in written.items() if key not in GRID_KEYS and key != "output_dir"}
    folder = Path(str(written["output_dir"].value)) if "output_dir" in written else Path(FOLDER) / path.stem
    return Comparison(grid, variants, _reference(grid, variants, own), shared, folder.expanduser(), path.stem)


def grid_keys() -> dict[str, str]:
    """{key: what it takes and what it is, in words} of a comparison's own keys, for the help and the pages."""
    made = TypeAdapter(Grid).json_schema()["properties"]
    return {key: f"{made[key]['description']} ({words(made[key])})" for key in GRID_KEYS}


def _grid(own: Mapping[str, Written], path: Path) -> Grid:
    if "methods" not in own:
        raise RecipeError([f"{path}: methods is missing; it takes a list of methods: {', '.join(METHODS)}"])
    try:
        return Grid(**{key: each.value for key, each in own.items()})
    except ValidationError as error:
        made = TypeAdapter(Grid).json_schema()["properties"]
        wrong = dict.fromkeys(str(each["loc"][0]) for each in error.errors(include_url=False))
        raise RecipeError(
            [_at(own[key], f"{key} takes {words(made[key])}, not {shown(own[key].value)}") for key in wrong]
        ) from error


def _variants(grid: Grid, written: Written) -> tuple[Variant, ...]:
    problems: list[str] = []
    variants = []
    for entry in grid.methods:
        keys = {"method": entry} if isinstance(entry, str) else dict(entry)
        wrong = _wrong_method(keys.get("method"))
        if wrong is None:
            method = str(keys.pop("method"))
            rates = keys.pop("learning_rates", grid.learning_rates or _default_rates(method))
            title = str(keys.pop("title", None) or _title(method, keys))
            wrong = _wrong_rates(rates, grid.auto) or _wrong_keys(keys)
        if wrong is not None:
            problems.append(_at(written, f"{entry if isinstance(entry, str) else keys}: {wrong}"))
            continue
        variants.append(Variant(title, method, keys, tuple(map(float, rates))))
    problems += [
        _at(written, f"two methods are called {title}; give one of them a title of its own")
        for title, count in Counter(each.title for each in variants).items()
        if count > 1
    ]
    problems += [
        f"{name} has two equal values, so that two cells would be equal; remove one"
        for name, values in (("ranks", grid.ranks), ("seeds", grid.seeds))
        if len(set(values)) < len(values)
    ]
    if problems:
        raise RecipeError(problems)
    return tuple(variants)


def _wrong_method(method: Any) -> str | None:
    if method in METHODS:
        return None
    if method is None:
        return "the method is missing"
    meant = nearest(str(method), METHODS)
    return f"there is no method {method}; " + (f"did you mean {meant}?" if meant else f"they are {_listed(METHODS)}")


def _wrong_rates(rates: Any, auto: bool) -> str | None:
    if not isinstance(rates, list) or not all(isinstance(each, float | int) and 0 < each <= 1 for each in rates):
        return f"learning_rates takes a list of numbers above 0 and at most 1, not {shown(rates)}"
    if len({*map(float, rates)}) < len(rates):
        return "learning_rates has two equal values, so that two cells would be equal; remove one"
    return None if rates or auto else "no learning rate to try; give learning_rates, or auto: true"


def _wrong_keys(keys: Mapping[str, Any]) -> str | None:
    for key in keys:
        if key in ("learning_rate", "seed", "output_dir"):
            return f"{key} is given by {OF_THE_GRID.get(key, 'the comparison')} here"
        if key not in OWN_KEYS and key not in TRAINING_ARGUMENT_NAMES:
            meant = nearest(key, (*OWN_KEYS, *OF_A_VARIANT, *TRAINING_ARGUMENT_NAMES))
            return f"there is no key {key}" + (f"; did you mean {meant}?" if meant else "")
    return None


def _default_rates(method: str) -> list[float]:
    """The rate of the method's own defaults, where a comparison names none."""
    rate = METHODS[method].defaults.get("learning_rate")
    return [] if rate is None else [rate]


def _title(method: str, keys: Mapping[str, Any]) -> str:
    """The method's title, with the settings in which it differs."""
    differing = [f"{key.replace('_', ' ')} {value}" for key, value in keys.items()]
    return ", ".join([METHODS[method].title, *differing])


def _reference(grid: Grid, variants: tuple[Variant, ...], own: Mapping[str, Written]) -> str:
    titles = [each.title for each in variants]
    if grid.reference is None:
        return next((each.title for each in variants if each.method == "lora"), titles[0])
    if grid.reference not in titles:
        meant = nearest(grid.reference, titles)
        raise RecipeError(
            [
                _at(own["reference"], f"reference: no method is called {grid.reference}")
                + (f"; did you mean {meant}?" if meant else f"; they are {_listed(titles)}")
            ]
        )
    return grid.reference


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _at(written: Written, text: str) -> str:
    return f"{written.where}: {text}"
