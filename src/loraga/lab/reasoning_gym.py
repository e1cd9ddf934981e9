"""Loads one module of reasoning-gym without the others.

The package imports every one of its hundred tasks at once, and with them packages that need a compiler. A task's own
module needs none of them.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from .errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "reasoning_gym"
REQUIREMENT = "reasoning-gym==0.1.25"


@contextmanager
def single_module(name: str) -> Iterator[ModuleType]:
    """Gives one module of reasoning-gym, such as "arithmetic.chain_sum".

    Args:
        name: its name inside the package.

    Yields:
        The module. Its datasets are to be made inside the context: some read the package's data. Afterwards
        `sys.modules` is as it was, so that whoever imports the whole package gets the whole package.

    Raises:
        LabError: if reasoning-gym is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise LabError(f"the tasks come from a package that is missing: pip install --no-deps {REQUIREMENT}")
    with _without_package_code(spec, name):
        yield importlib.import_module(f"{PACKAGE}.{name}")


@contextmanager
def _without_package_code(spec: importlib.machinery.ModuleSpec, name: str) -> Iterator[None]:
    """While inside, the packages that lead to a module are found but their own `__init__` does not run."""
    before = {key: module for key, module in sys.modules.items() if _is_inside(key)}
    for key in before:
        del sys.modules[key]
    parents = [PACKAGE, *(f"{PACKAGE}.{part}" for part in _parents(name))]
    folders = list(spec.submodule_search_locations or [])
    try:
        for parent in parents:
            package = ModuleType(parent)
            below = parent.removeprefix(PACKAGE).replace(".", "/")
            package.__path__ = [folder + below for folder in folders]
            sys.modules[parent] = package
        yield
    finally:
        for key in [key for key in sys.modules if _is_inside(key)]:
            del sys.modules[key]
        sys.modules.update(before)


def _is_inside(module: str) -> bool:
    return module == PACKAGE or module.startswith(PACKAGE + ".")


def _parents(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
