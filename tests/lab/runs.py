"""Runs of the lab on the tiny models, in this process, and what stops them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from loraga.lab.arguments import training_arguments
from loraga.lab.base_model import BaseModel
from loraga.lab.examples import encode_all
from loraga.lab.interruption import Interruption
from loraga.lab.own_training import own_training
from loraga.lab.preparation import Prepared
from loraga.lab.prompts import make_prompted
from loraga.lab.run import run
from loraga.lab.run_folder import folder_of
from loraga.lab.starts import Started, start
from loraga.lab.training import TrainingData, train

from .conftest import ROWS, Told, byte_tokenizer

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from loraga.lab.recipe import Recipe


def data_of(recipe: Recipe, model: Any) -> TrainingData:
    """The sums as a recipe's model takes them."""
    rows = make_prompted(ROWS, recipe, byte_tokenizer(), "rows.jsonl")
    sides = bool(model.config.is_encoder_decoder)
    examples = encode_all(byte_tokenizer(), rows, recipe, "rows.jsonl", is_encoder_decoder=sides).examples
    return Prepared(byte_tokenizer(), examples, ()).data_for(model)


def started(recipe: Recipe, base: Any = None) -> Started:
    """A recipe's start on its base model, or on one that is given."""
    base = BaseModel.of(recipe).load() if base is None else base
    return start(base, recipe, data_of(recipe, base).micro_batches(recipe, 0, recipe.gradient_batches))


def trained(recipe: Recipe, model: Any, *callbacks: TrainerCallback) -> None:
    """Trains a started model to the recipe's end, in the recipe's folder."""
    folder, own, interruption = folder_of(recipe), own_training(recipe), Interruption(lambda: None)
    folder.path.mkdir(parents=True, exist_ok=True)
    data, arguments = data_of(recipe, model), training_arguments(recipe)
    train(model, byte_tokenizer(), data, arguments, folder, interruption, Told(), callbacks, own)


def carried_out(recipe: Recipe, told: Told | None = None) -> dict[str, Any]:
    """What `run` gives for a recipe."""
    return run(recipe, Console(file=io.StringIO()), told or Told())


def killed(recipe: Recipe, step: int) -> None:
    """Carries a recipe out and is killed after a step, before that step's checkpoint."""
    with pytest.raises(Killed, match="now"):
        carried_out(recipe, KilledAfter(step))


class Killed(BaseException):
    pass


class KilledAfter(Told):
    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def advance(self, work: float, note: str) -> None:
        super().advance(work, note)
        if note.startswith(f"training: step {self._step} of"):
            raise Killed("now")
