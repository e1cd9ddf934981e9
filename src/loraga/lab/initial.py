"""A gradient estimated on a recipe's data, and an adapter with its start, both without training."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from loraga import estimate_gradients, save_gradients

from .errors import SettingsError
from .methods import METHODS
from .preparation import prepare
from .quiet import quiet_libraries
from .starts import load_base, start, with_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from .recipe import Recipe


def estimate(recipe: Recipe, file: Path, console: Console) -> dict[str, Any]:
    """Estimates the gradient of the layers that a recipe's adapter is on, and writes it.

    Args:
        recipe: model, data, rank, target_modules, gradient_batches, seed.
        file: the gradients file to write (safetensors).
        console: where it says what it does.

    Returns:
        What is in the file.
    """
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


def init(recipe: Recipe, directory: Path, console: Console) -> dict[str, Any]:
    """Writes a recipe's adapter with its start, ready to train by whatever program.

    Args:
        recipe: model, method and, for a start along the gradient, data or a gradients file.
        directory: where the adapter goes.
        console: where it says what it does.

    Returns:
        Totals of the start.

    Raises:
        SettingsError: if the recipe trains all parameters.
    """
    if not METHODS[recipe.method].adapter:
        raise SettingsError(f"method: {recipe.method} has no adapter to write; name another method")
    with quiet_libraries():
        prepared = prepare(recipe, console)
        model = load_base(recipe)
        data = prepared.data_for(model)
        started = start(model, recipe, data.micro_batches(recipe, 0, recipe.gradient_batches))
        started.model.save_pretrained(str(directory))
    totals = {} if started.report is None else {"coverage": started.report.coverage, "cosine": started.report.cosine}
    return {"adapter": str(directory), "method": recipe.method, "seconds": started.seconds, **totals}
