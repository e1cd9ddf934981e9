"""Tests of the public surface: what `import loraga` costs, and that each name is found where it is said to be."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import loraga

HEAVY = ("torch", "transformers", "peft", "safetensors", "numpy")


def loaded_by(statements):
    """Which of the heavy packages a fresh interpreter has imported after some statements."""
    script = f"{statements}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    path = f"import sys; sys.path[:0] = {sys.path}\n"
    done = subprocess.run([sys.executable, "-c", path + script], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("module", ["loraga", "loraga.errors", "loraga._version", "loraga.cli"])
def test_importing_it_imports_no_heavy_package(module):
    assert loaded_by(f"import {module}") == []


def test_errors_and_names_can_be_looked_at_before_anything_heavy_is_imported():
    assert loaded_by("import loraga\nloraga.LoragaError, loraga.__version__, dir(loraga), loraga.__all__") == []


def test_a_heavy_package_is_imported_when_it_is_needed():
    assert "torch" in loaded_by("import loraga\nloraga.LowRankGradient")


def test_every_public_name_is_found_and_is_its_modules_own():
    for name in loraga.__all__:
        value = getattr(loraga, name)
        if name in loraga._MODULES:
            assert value.__module__ == f"loraga.{loraga._MODULES[name]}", name
            assert vars(loraga)[name] is value, name
    assert set(loraga._MODULES) < set(loraga.__all__)
    assert set(loraga.__all__) <= set(dir(loraga))


def test_a_star_import_gives_every_public_name():
    names = {}
    exec("from loraga import *", names)
    assert {name for name in names if name != "__builtins__"} == set(loraga.__all__)


def test_an_unknown_name_is_pythons_usual_error():
    with pytest.raises(AttributeError, match=r"^module 'loraga' has no attribute 'initialise'$"):
        loraga.initialise  # noqa: B018
    with pytest.raises(ImportError, match=r"cannot import name 'initialise' from 'loraga'"):
        from loraga import initialise  # noqa: F401


def test_type_checkers_and_the_interpreter_find_the_same_names():
    tree = ast.parse(Path(loraga.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == loraga._MODULES


def test_no_module_has_the_name_of_a_public_one():
    assert not {module.name for module in pkgutil.iter_modules(loraga.__path__)} & set(loraga.__all__)
