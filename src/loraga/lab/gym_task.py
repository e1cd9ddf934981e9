"""Tasks with a verifiable answer, from reasoning-gym: questions without end, each with its one right answer.

name, settings --find_task--> GymTask --seed--> items, all different
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, SettingsError
from .reasoning_gym import PACKAGE, single_module
from .recipe_check import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

GYM = "reasoning_gym:"
BLOCK = 1024  # items made at a time


@dataclass(frozen=True)
class Item:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class GymTask:
    """A task of reasoning-gym.

    Attributes:
        name: how it is called here.
        module: the module that defines it, such as "arithmetic.chain_sum".
        dataset: the dataset's class in that module.
        settings_class: the class of its settings there.
        settings: what differs from the dataset's defaults.
    """

    name: str
    module: str
    dataset: str
    settings_class: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def items(self, seed: int) -> Iterator[Item]:
        """Yields items with questions that all differ; the same items for the same seed.

        Args:
            seed: not negative; items of two seeds are drawn independently.

        Yields:
            Items, until a block of them brings no new question.
        """
        seen: set[str] = set()
        first = seed << 32  # the gym draws item i from seed + i, so the blocks of a seed, and the seeds, keep apart
        while True:
            known = len(seen)
            with single_module(self.module) as module:
                settings = getattr(module, self.settings_class)(seed=first, size=BLOCK, **self.settings)
                dataset = getattr(module, self.dataset)(settings)
            for made in (dataset[index] for index in range(BLOCK)):
                item = Item(made["question"].strip(), str(made["answer"]).strip())
                if item.question not in seen:
                    seen.add(item.question)
                    yield item
            if len(seen) == known:
                return
            first += BLOCK


def find_task(name: str, options: Mapping[str, Any]) -> GymTask:
    """The task that a recipe names, with its settings checked.

    Args:
        name: "reasoning_gym:" and the module, such as "reasoning_gym:arithmetic.chain_sum".
        options: settings of the task's Config, but for seed and size.

    Returns:
        The task.

    Raises:
        SettingsError: if there is no such task or setting, or the task refuses a value; the nearest right one is named.
        DataError: if the task needs a package that is not there.
    """
    module = name.removeprefix(GYM)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None:  # single_module says what to do without it
        _require_module(module, [Path(folder) for folder in spec.submodule_search_locations or ()])
    try:
        with single_module(module) as loaded:
            return _checked(GymTask(name, module, *_classes(loaded, name), settings=options), loaded)
    except ImportError as cause:
        reason = f"it needs {cause.name}" if isinstance(cause, ModuleNotFoundError) else "it needs the whole package"
        raise DataError(f"the task {name} cannot be loaded: {reason}, which is not there; take another task") from cause


def _checked(task: GymTask, module: ModuleType) -> GymTask:
    settings_class = getattr(module, task.settings_class)
    _require_settings(task.settings, [each.name for each in fields(settings_class)], task.name)
    try:
        getattr(module, task.dataset)(settings_class(**task.settings, seed=0, size=1))
    except (AssertionError, TypeError, ValueError) as cause:
        raise SettingsError(f"{task.name} refuses data_options: {' '.join(str(cause).split())}") from cause
    return task


def _require_module(module: str, folders: list[Path]) -> None:
    found = [path.relative_to(folder).with_suffix("").parts for folder in folders for path in folder.rglob("*.py")]
    tasks = {parts[-1]: ".".join(parts) for parts in found if len(parts) > 1 and not parts[-1].startswith("_")}
    if module not in tasks.values():
        last = nearest(module.rpartition(".")[2], tasks)
        meant = nearest(module, tasks.values()) or (last and tasks[last])
        hint = f"did you mean {GYM}{meant}?" if meant else f"a task is named like {GYM}arithmetic.chain_sum"
        raise SettingsError(f"reasoning-gym has no task {module}; {hint}")


def _classes(module: ModuleType, name: str) -> tuple[str, str]:
    """The names of a module's dataset class and of its settings' class."""
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    datasets = [each.__name__ for each in own if any(base.__name__ == "ProceduralDataset" for base in each.__mro__[1:])]
    settings = [each.__name__ for each in own if each.__name__.endswith("Config") and is_dataclass(each)]
    if len(datasets) != 1 or len(settings) != 1:
        found = ", ".join(datasets + settings) or "nothing of the kind"
        raise SettingsError(f"{name} is no task: its module is to define one dataset and its Config, not {found}")
    return datasets[0], settings[0]


def _require_settings(options: Mapping[str, Any], known: list[str], name: str) -> None:
    own = {"seed": "write data_seed", "size": "write rows and held_out_rows"}
    settings = [each for each in known if each not in own]
    for key in options:
        if key in own:
            raise SettingsError(f"data_options has {key}: {own[key]}")
        if key not in settings:
            meant = nearest(key, settings)
            hint = f"did you mean {meant}?" if meant else f"it has {', '.join(settings) or 'none'}"
            raise SettingsError(f"{name} has no setting {key}; {hint}")
