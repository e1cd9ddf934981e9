import importlib.util
import sys
from types import ModuleType

import pytest

from loraga.lab.errors import LabError
from loraga.lab.reasoning_gym import single_module


def test_a_module_is_loaded_without_the_package_around_it():
    with single_module("arithmetic.gcd") as module:
        made = module.GCDDataset(module.GCDConfig(seed=1, size=1))[0]
        siblings = [name for name in sys.modules if name.startswith("reasoning_gym.arithmetic.")]

    assert "Greatest Common Divisor" in made["question"]
    assert siblings == ["reasoning_gym.arithmetic.gcd"]


def test_whoever_imported_the_package_keeps_it(monkeypatch):
    theirs = ModuleType("reasoning_gym")
    theirs.__spec__ = importlib.util.find_spec("reasoning_gym")
    monkeypatch.setitem(sys.modules, "reasoning_gym", theirs)

    with single_module("arithmetic.gcd"):
        assert sys.modules["reasoning_gym"] is not theirs

    assert sys.modules["reasoning_gym"] is theirs


def test_modules_are_put_back_after_an_error():
    with pytest.raises(ModuleNotFoundError, match="no_such_task"), single_module("arithmetic.no_such_task"):
        pass

    assert not [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(LabError, match="pip install --no-deps reasoning-gym"), single_module("arithmetic.gcd"):
        pass
