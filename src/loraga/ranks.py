"""One start for every process of a distributed run: their gradients are merged, the first one's tensors count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from .errors import LoragaError
from .estimate import estimate_gradients
from .initialization import initialize
from .layers import active_adapter, lora_layers
from .offset import has_offset, offset_of, trained_factors
from .sharding import whole, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peft import PeftModel

    from .gradient import LowRankGradient
    from .loss import Batch
    from .report import Report

Result = TypeVar("Result")

ESTIMATING = ("estimator", "loss", "weight", "num_batches", "adapter_name", "seed", "progress")


def initialize_on_every_rank(model: PeftModel, batches: Sequence[Batch], **keywords: Any) -> Report:
    """Initialises with the gradient of every process's batches, each counting by its loss terms.

    Args:
        model: the model, the same on every process.
        batches: this process's own batches.
        **keywords: those of `initialize`.

    Returns:
        What was done, the same on every process.
    """
    name = keywords.get("adapter_name") or active_adapter(model)
    layers = lora_layers(model, name)
    if keywords.get("gradients") is None:
        rank = max(layer.r[name] for layer in layers.values())
        chosen = {key: value for key, value in keywords.items() if key in ESTIMATING}
        own = together(lambda: estimate_gradients(model, batches, rank, **chosen))
        keywords["gradients"] = _merged(own, model.device)
    report = initialize(model, batches, **keywords)
    for layer in layers.values():
        starts = [trained_factors(layer, name)]
        if has_offset(layer, name):
            starts.append(offset_of(layer, name))
        for tensor in [tensor for start in starts for tensor in (start.A, start.B)]:
            firsts = whole(tensor)
            distributed.broadcast(firsts, src=0)  # other hardware may round otherwise
            if firsts is not tensor:
                write_whole(tensor, firsts)
    return report


def together(work: Callable[[], Result]) -> Result:
    """Does work that may fail in one process alone; then it fails in all, which would wait for that one otherwise.

    Args:
        work: what this process has to do.

    Returns:
        What it gave.

    Raises:
        LoragaError: the first process's that failed.
    """
    error: LoragaError | None = None
    try:
        result = work()
    except LoragaError as failure:
        error = failure
    for other in _gathered(error):
        if other is not None:
            raise other
    return result


def _merged(own: dict[str, LowRankGradient], device: torch.device) -> dict[str, LowRankGradient]:
    """Merges what the processes estimated, in their order."""
    merged: dict[str, LowRankGradient] = {}
    for found in _gathered({layer: gradient.to("cpu") for layer, gradient in own.items()}):
        for layer, gradient in found.items():
            merged[layer] = merged[layer].merge(gradient) if layer in merged else gradient
    return {layer: gradient.to(device) for layer, gradient in merged.items()}


def _gathered(value: Any) -> list[Any]:
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
