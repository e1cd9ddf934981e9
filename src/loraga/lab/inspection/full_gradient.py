"""The gradient of each linear layer's weight as the matrix itself, summed on the CPU over micro-batches.

This is the paper's Algorithm 2 without its decomposition: as exact as float32 is, for 4 bytes a weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loraga import GradientError
from loraga.capture import capture
from loraga.gradient import require_finite
from loraga.layers import target_layers, without_lora
from loraga.loss import collect_micro_batches, input_device, mean_loss, move_to
from loraga.passes import gradient_pass
from loraga.quantization import require_gradients

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from loraga.loss import Batch

    from ..progress import Progress


def full_gradients(model: nn.Module, batches: Iterable[Batch], progress: Progress) -> tuple[dict[str, Tensor], float]:
    """Sums each layer's gradient, at the base model's own weights; the model is left as it was.

    Args:
        model: a model, or a PeftModel, of which the layers under its adapter are taken.
        batches: dicts of tensors with labels; all are taken, each counting by its loss terms.
        progress: told each micro-batch that is done.

    Returns:
        {layer: (d_out, d_in), float32, on the CPU} in the model's order, without those that no loss term depends on;
        and the number of loss terms that they are the mean over.

    Raises:
        BatchError: if the batches cannot be used.
        GradientError: if a gradient is not finite, or the loss depends on no layer.
        AdapterError: if the adapter is merged, or no gradient passes through a quantised layer.
    """
    layers = target_layers(model)
    require_gradients(model)
    sums: dict[str, Tensor] = {}
    share = 0.0  # of the loss terms, of the micro-batch under way

    def receive(layer: str, inputs: Tensor, output_gradients: Tensor) -> None:
        with torch.autocast(inputs.device.type, enabled=False):  # backward runs under the caller's autocast
            added = ((share * output_gradients.float()).T @ inputs.float()).cpu()
        try:
            require_finite(added)
        except GradientError as cause:
            raise GradientError(f"layer {layer}: {cause}; look for a bad row, or write dtype: float32") from cause
        sums[layer] = added if layer not in sums else sums[layer].add_(added)

    with gradient_pass(model), without_lora(model):
        micro_batches = collect_micro_batches(model, batches, None)
        loss_terms = sum(micro_batch.loss_terms for micro_batch in micro_batches)
        progress.begin("gradient", len(micro_batches), 0.0)
        with capture(model, layers, receive) as counter:
            for index, micro_batch in enumerate(micro_batches):
                share = micro_batch.loss_terms / loss_terms
                with torch.enable_grad():
                    loss = mean_loss(model, move_to(micro_batch.inputs, input_device(model)), index)
                if not loss.requires_grad:
                    raise GradientError(f"batch {index}: the loss does not depend on any of the layers")
                if counter.saw_half:
                    raise GradientError(
                        "in float16 small gradients vanish, so that none would be exact; add dtype=float32, or "
                        "--estimator streaming"
                    )
                loss.backward()
                progress.advance(1, f"gradient: micro-batch {index + 1} of {len(micro_batches)}")
    if not sums:
        raise GradientError("no layer got a gradient: the loss does not depend on any of them")
    return {layer: sums[layer] for layer in layers if layer in sums}, loss_terms
