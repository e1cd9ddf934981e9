"""Tests that all errors are one family, which a user catches with one name."""

from __future__ import annotations

import ast
import builtins
import inspect
from pathlib import Path

import pytest

import loraga
from loraga import LoragaError, errors

FAMILY = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]
SOURCES = sorted(path for path in Path(loraga.__file__).parent.glob("*.py") if path.name != "cli.py")


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_every_error_is_a_loraga_error_that_can_be_imported_from_the_package(kind):
    assert issubclass(kind, LoragaError)
    assert getattr(loraga, kind.__name__) is kind
    assert kind.__name__ in loraga.__all__
    assert kind.__doc__
    with pytest.raises(LoragaError, match=r"^what, where, what to do$"):
        raise kind("what, where, what to do")


def test_no_error_hides_a_bug_of_ours():
    """A LoragaError must not be caught by who catches ValueError, KeyError or RuntimeError, nor the other way round."""
    assert LoragaError.__bases__ == (Exception,)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_modules_raise_no_error_of_another_family(path):
    ours = {kind.__name__ for kind in FAMILY}
    if path.stem == "__init__":
        ours.add("AttributeError")  # what a module's __getattr__ must raise
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and path.stem != "errors":
            bases = {ast.unparse(base) for base in node.bases}
            assert not any(inspect.isclass(kind := getattr(builtins, base, None)) and issubclass(kind, BaseException)
                           for base in bases), f"{path.name}: {node.name} belongs in errors.py"  # fmt: skip
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            name = node.exc.func.id
            assert name in ours or not hasattr(builtins, name), f"{path.name}:{node.lineno} raises {name}"
