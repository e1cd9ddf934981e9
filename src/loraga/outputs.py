"""What a model gives for a batch, so that two states of it can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .loss import Batch, LossFunction, input_device, mean_loss, move_to


def model_outputs(model: nn.Module, inputs: Batch, loss: LossFunction | None) -> list[Tensor]:
    """Runs one batch and collects what the model gave.

    Args:
        model: the model.
        inputs: one batch.
        loss: a custom loss, or None for the model's own.

    Returns:
        The logits (or the largest floating tensor) of each call of the model that the loss made, then the loss.
    """
    seen: list[Tensor] = []

    def collect(module: nn.Module, args: Any, output: Any) -> None:
        seen.extend(_main_tensor(output))

    handle = model.register_forward_hook(collect)
    try:
        with torch.no_grad():
            value = mean_loss(model, move_to(inputs, input_device(model)), loss=loss)
    finally:
        handle.remove()
    return [*seen, value]


def are_equal(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit (a NaN equals a NaN)."""
    return len(before) == len(after) and all(
        torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(before, after, strict=True)
    )


def relative_change(before: list[Tensor], after: list[Tensor]) -> float:
    """||after - before|| / ||before|| over what the model gave first; over the loss if it was not called itself."""
    first, second = before[0].float(), after[0].float()
    scale = float(torch.linalg.vector_norm(first.nan_to_num()))
    change = float(torch.linalg.vector_norm((second - first).nan_to_num()))
    return change / scale if scale > 0 else change


def _main_tensor(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output.detach()]
    if isinstance(output, Mapping):
        if isinstance(output.get("logits"), Tensor):
            return [output["logits"].detach()]
        output = tuple(output.values())
    tensors = [
        item.detach()
        for item in (output if isinstance(output, tuple) else ())
        if isinstance(item, Tensor) and item.ndim
    ]
    return [max(tensors, key=torch.numel)] if tensors else []
