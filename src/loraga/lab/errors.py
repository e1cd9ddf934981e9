"""Errors of the experiments."""

from __future__ import annotations

from loraga.errors import LoragaError


class LabError(LoragaError):
    """An experiment cannot be run; the message says what to do."""


class DivergedError(LabError):
    """A training's loss is not finite any more."""


class SettingsError(LabError):
    """What was asked for contradicts itself, or what an earlier run left in the folder."""

    wrong_use = True  # the command line ends with 2, not with 1


class RecipeError(SettingsError):
    """A recipe is wrong.

    Args:
        problems: what is wrong, where, and what to do; one line each.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(SettingsError):
    """The data or the base model that a recipe names cannot be used; known before the model's weights are read."""
