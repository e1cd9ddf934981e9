import subprocess
import sys

import pytest

from loraga.lab.methods import METHODS
from loraga.lab.recipe import Recipe
from loraga.scheme import SCHEMES, scaling_by_rank, scaling_by_root_of_rank

STARTED = {name: method for name, method in METHODS.items() if method.scheme is not None}
HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "accelerate", "trl")
LIGHT = ("methods", "metrics", "recipe", "recipe_check", "recipe_file", "recipe_help", "foreign_keys")


def test_every_scheme_is_a_method():
    assert {method.scheme for method in STARTED.values()} == set(SCHEMES)


@pytest.mark.parametrize("name", STARTED)
def test_a_method_has_its_schemes_scaling(name):
    method = METHODS[name]

    expected = scaling_by_root_of_rank if method.use_rslora else scaling_by_rank
    assert SCHEMES[method.scheme].eta(16, 4) == expected(16, 4)
    assert scaling_by_root_of_rank(16, 4) != scaling_by_rank(16, 4)


@pytest.mark.parametrize("name", STARTED)
def test_a_method_looks_at_batches_if_its_scheme_uses_the_gradient(name):
    assert METHODS[name].uses_gradient is SCHEMES[METHODS[name].scheme].uses_gradient


def test_only_an_adapter_has_a_scheme_and_only_a_scheme_uses_a_gradient():
    for method in METHODS.values():
        assert method.adapter or (method.scheme is None and not method.use_rslora)
        assert method.scheme is not None or not method.uses_gradient


def test_methods_are_told_apart_by_title_and_sentence():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    assert len({method.what for method in METHODS.values()}) == len(METHODS)


def test_every_method_can_be_written_in_a_recipe():
    for name in METHODS:
        assert Recipe(model="m", data="d", method=name).method == name


@pytest.mark.parametrize("module", LIGHT)
def test_recipes_are_checked_without_importing_anything_heavy(module):
    code = f"import sys, loraga.lab.{module}; print([name for name in {HEAVY} if name in sys.modules])"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "[]"
