"""A gradient estimated on a recipe's data, and an adapter with its start, both without training."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loraga import OffsetError, estimate_gradients, save_gradients, save_residual
from loraga.residual_record import START
from loraga.weights import FULL_PRECISION

from .errors import SettingsError
from .methods import METHODS
from .preparation import prepare
from .quiet import quiet_libraries
from .starts import load_base, start, with_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from .recipe import Recipe

INSTEAD = "method: mirrored leaves the base as it is"


def estimate(recipe: Recipe, file: Path, console: Console) -> dict[str, Any]:
    """Estimates the gradient of the layers that a recipe's adapter is on, and writes it.

    Args:
        recipe: model, data, rank, target_modules, gradient_batches, seed.
        file: the gradients file to write (safetensors).
        console: where it says what it does.

    Returns:
        What is in the file.

    Raises:
        SettingsError: if the recipe's method cannot start from such a file.
    """
    if METHODS[recipe.method].peft != "lora":
        raise SettingsError(
            f"method: {recipe.method} is started by PEFT alone, which reads no gradients file; name lora_ga or its like"
        )
    with quiet_libraries():
        prepared = prepare(recipe, console)
        model = with_adapter(load_base(recipe), recipe)
        batches = prepared.data_for(model).micro_batches(recipe, 0, recipe.gradient_batches)
        console.print(f"estimating the gradient on {len(batches)} micro-batches", highlight=False)
        began = time.monotonic()
        gradients = estimate_gradients(
            model, batches, recipe.rank, num_batches=None, seed=recipe.seed, progress=console.is_terminal
        )
        seconds = time.monotonic() - began
        file.parent.mkdir(parents=True, exist_ok=True)
        save_gradients(gradients, file)
    return {
        "file": str(file),
        "layers": len(gradients),
        "rank": recipe.rank,
        "seconds": seconds,
        "loss_terms": max(gradient.loss_terms for gradient in gradients.values()),
    }


def init(
    recipe: Recipe, directory: Path, console: Console, *, residual: bool = False, allow_rounding: bool = False
) -> dict[str, Any]:
    """Writes a recipe's adapter with its start, ready to train by whatever program.

    Args:
        recipe: model, method and, for a start along the gradient, data or a gradients file.
        directory: where the adapter goes, or with `residual` the base model.
        console: where it says what it does.
        residual: write the base model with the start subtracted, and the adapter in a folder of it.
        allow_rounding: do so in half precision too, which rounds part of the start away.

    Returns:
        Where what is, and totals of the start.

    Raises:
        SettingsError: if the recipe trains all parameters, no folder holds its method's start, or no residual base can
            be written.
    """
    method = METHODS[recipe.method]
    if not method.adapter:
        raise SettingsError(f"method: {recipe.method} has no adapter to write; name another method")
    if method.no_init:
        raise SettingsError(f"method: {recipe.method} has no start to write ({method.no_init}); use `loraga train`")
    if residual:
        recipe = _with_offset_in_weights(recipe)
    with quiet_libraries():
        prepared = prepare(recipe, console)
        model = load_base(recipe)
        if residual and not allow_rounding:
            _require_full_precision(model)
        batches = prepared.data_for(model).micro_batches(recipe, 0, recipe.gradient_batches)
        try:
            started = start(model, recipe, batches, allow_rounding=residual and allow_rounding)
        except OffsetError as cause:
            if not residual:
                raise
            raise SettingsError(f"no residual base can be written ({cause}); {INSTEAD}") from cause
        written: dict[str, Any] = {"adapter": str(directory), "method": recipe.method, "seconds": started.seconds}
        if residual:
            exported = save_residual(started.model, directory, tokenizer=prepared.tokenizer)
            written |= {"base": str(directory), "adapter": str(directory / START), "rounding": exported.relative_error}
        else:
            started.model.save_pretrained(str(directory))
    if started.report is not None:
        written |= {name: getattr(started.report, name) for name in ("coverage", "cosine", "function_change")}
    return written


def _with_offset_in_weights(recipe: Recipe) -> Recipe:
    """The recipe whose start is subtracted from the base's weights."""
    method = METHODS[recipe.method]
    if method.changes_base:  # PEFT subtracts its start from the weights anyway
        return recipe
    if method.scheme is None:
        raise SettingsError(f"method: {recipe.method} has no start to subtract; --residual is for lora_ga and its like")
    if method.mirrored:
        raise SettingsError("--residual excludes method: mirrored, which leaves the base as it is; drop one of the two")
    if recipe.offset == "none":
        raise SettingsError("--residual excludes offset: none, which subtracts nothing; drop one of the two")
    return replace(recipe, offset="weights")


def _require_full_precision(model: Any) -> None:
    for weight in model.parameters():
        if weight.is_floating_point() and weight.dtype not in FULL_PRECISION:
            raise SettingsError(
                f"no residual base can be written: {weight.dtype} rounds part of the start away; write dtype: float32, "
                f"accept it with --allow-rounding, or note that {INSTEAD}"
            )
