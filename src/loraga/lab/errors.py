"""Errors of the experiments."""

from __future__ import annotations

from loraga.errors import LoragaError


class LabError(LoragaError):
    """An experiment cannot be run; the message says what to do."""


class SettingsError(LabError):
    """What was asked for contradicts itself, or what an earlier run left in the folder."""

    wrong_use = True  # the command line ends with 2, not with 1
