"""A recipe's method put on a base model, ready to train: an adapter with its start, or all parameters.

One function for every method: what tells them apart is their entry in METHODS.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from loraga import initialize, load, load_gradients, save_mirrored
from loraga.passes import same_random_states
from loraga.residual_record import MIRRORED

from .arguments import training_arguments
from .base_model import BaseModel
from .errors import SettingsError
from .methods import METHODS
from .peft_starts import STARTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loraga import Report

    from .recipe import Recipe


@dataclass(frozen=True)
class Started:
    """A model that is ready to train, how long its start took, and the start's report if it has one."""

    model: Any
    seconds: float
    report: Report | None = None


def load_base(recipe: Recipe) -> Any:
    """The recipe's base model, on Trainer's device, and checkpointing for its start too if it is to train so."""
    model = BaseModel.of(recipe).load().to(training_arguments(recipe).device)
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model


def start(model: Any, recipe: Recipe, batches: Sequence[dict[str, Any]], *, allow_rounding: bool = False) -> Started:
    """Makes a base model ready to train, in place.

    Args:
        model: a fresh base model.
        recipe: method, rank and the rest.
        batches: micro-batches for a start that looks at data; not looked at otherwise.
        allow_rounding: accept offset: weights on a half-precision base.

    Returns:
        The model with its adapter, or with all parameters trainable.
    """
    began = time.perf_counter()
    method = METHODS[recipe.method]
    if not method.adapter:
        return Started(model.requires_grad_(True), time.perf_counter() - began)
    peft_model = with_adapter(model, recipe, batches)
    report = None
    if method.scheme is not None:
        report = initialize(
            peft_model,
            batches,
            gamma=recipe.gamma,
            num_batches=None,
            scheme=method.scheme,
            stability=recipe.stability,
            offset=recipe.offset,
            gradients=None if recipe.gradients is None else load_gradients(recipe.gradients),
            seed=recipe.seed,
            allow_rounding=allow_rounding,
            progress=False,
        )
    if method.mirrored and report is not None:
        peft_model, report = _mirrored(peft_model), replace(report, offset=MIRRORED)
    return Started(peft_model, time.perf_counter() - began, report)


def _mirrored(model: Any) -> Any:
    """A started model with the mirrored adapter in the place of its own: what any tool would load and train."""
    with tempfile.TemporaryDirectory() as folder:
        save_mirrored(model, folder)
        return load(model.unload(), folder, is_trainable=True)


def continued(model: Any, recipe: Recipe, directory: Path) -> Any:
    """A base model ready to train on from an adapter that is there; no gradient is looked at."""
    if not METHODS[recipe.method].adapter:
        return model.requires_grad_(True)
    return load(model, directory, is_trainable=True)


def with_adapter(model: Any, recipe: Recipe, batches: Sequence[dict[str, Any]] = ()) -> Any:
    """Puts the recipe's adapter on a model as PEFT starts it, seeded, without touching the global random state.

    Args:
        model: a fresh base model; it is changed in place.
        recipe: method, rank and the rest.
        batches: micro-batches, for a start of PEFT's that looks at data.

    Returns:
        The PeftModel.

    Raises:
        SettingsError: if there are no such layers, or the start cannot be made on them.
    """
    with same_random_states():
        torch.manual_seed(recipe.seed)
        try:
            peft_model = STARTS[METHODS[recipe.method].peft](model, recipe, batches)
        except (ValueError, TypeError, RuntimeError) as cause:  # no such layer, or no memory
            raise SettingsError(
                f"no adapter can be put on the model; look at target_modules and rank ({' '.join(str(cause).split())})"
            ) from cause
    peft_model.peft_config["default"].base_model_name_or_path = BaseModel.of(recipe).address
    return peft_model


def trainable_parameters(model: Any) -> int:
    """How many numbers of a started model are trained: a method's parameter count."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
