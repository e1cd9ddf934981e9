"""The base weights themselves: their norms, and an offset folded into them (line 12 of the paper's Algorithm 1)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

import torch
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import EMBEDDING_LAYER_NAMES

from .errors import OffsetError
from .layers import base_layer
from .offset import add_to_weight, product
from .quantization import is_hqq, is_quantized, is_repacked
from .report import product_norm
from .sharding import is_sharded, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from torch import Tensor

    from .scheme import Factors

FULL_PRECISION = (torch.float32, torch.float64)


def weight_norm(layer: LoraLayer) -> float | None:
    """||W||_F of a layer's base weight, dequantised if it must be; None where this process cannot read it."""
    weight = float_weight(layer)
    return None if weight is None else float(whole(torch.linalg.vector_norm(weight)))


def float_weight(layer: LoraLayer) -> Tensor | None:
    """A layer's base weight in float32, (d_out, d_in), dequantised if it must be; None where it cannot be read here."""
    base = base_layer(layer)
    if is_hqq(base):
        with torch.no_grad():
            return cast("Tensor", base.dequantize()).float()
    if base.weight.device.type == "meta" or is_repacked(base):
        return None
    kept = base.weight
    try:
        with torch.no_grad():
            weight = dequantize_module_weight(base) if is_quantized(base) else base.weight
            return (weight.T if getattr(layer, "fan_in_fan_out", False) else weight).detach().float()
    finally:
        if base.weight is not kept:  # on a CPU, PEFT replaces an 8-bit weight by a copy that has lost its scales
            base.weight = kept


def require_foldable(
    model: PeftModel, layers: Mapping[str, LoraLayer], adapter_name: str, allow_rounding: bool
) -> None:
    """Refuses layers into whose weight an offset cannot be folded without changing the function.

    Args:
        model: the model that holds the layers.
        layers: the adapter's layers.
        adapter_name: the adapter.
        allow_rounding: accept a half-precision weight, which keeps only part of the offset.

    Raises:
        OffsetError: for a quantised, sharded, tied or half-precision weight, for a head, or for lora_dropout.
    """
    if len(model.peft_config) > 1:
        others = ", ".join(str(name) for name in model.peft_config if name != adapter_name)
        raise OffsetError(
            f"offset='weights' changes the base under the model's other adapters ({others}); use offset='adapter'"
        )
    tied = tied_layers(model, layers)
    for name, layer in layers.items():
        base = base_layer(layer)
        if is_quantized(base):
            raise OffsetError(f"layer {name}: offset='weights' cannot change a quantised weight; use offset='adapter'")
        if is_sharded(base.weight):
            raise OffsetError(f"layer {name}: offset='weights' cannot change a sharded weight; use offset='adapter'")
        if adapter_name in layer.lora_variant:
            kind = type(layer.lora_variant[adapter_name]).__name__
            raise OffsetError(f"layer {name}: {kind} is in use; offset='weights' knows plain LoRA only")
        if name in tied:
            raise OffsetError(f"layer {name}: its weight is tied to another layer's; use offset='adapter'")
        if name.rpartition(".")[2] in EMBEDDING_LAYER_NAMES:
            raise OffsetError(
                f"layer {name}: PEFT saves the base weight of a head that it adapts, and with offset='weights' that is "
                "the changed one; use offset='adapter', or leave the head out of target_modules"
            )
        if getattr(layer.lora_dropout[adapter_name], "p", 0.0) > 0:
            raise OffsetError(
                f"layer {name}: with lora_dropout > 0 an offset in the weights changes the function in train mode; "
                "set lora_dropout=0, or use offset='adapter'"
            )
        if base.weight.dtype not in FULL_PRECISION and not allow_rounding:
            raise OffsetError(
                f"layer {name}: its weight is {base.weight.dtype}, which rounds part of the offset away; use "
                "offset='adapter', or pass allow_rounding=True and read the rounding in the report"
            )


def tied_layers(model: PeftModel, layers: Mapping[str, LoraLayer]) -> set[str]:
    """Names of the layers whose weight is also that of another module, the embeddings for example."""
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {name for name, layer in layers.items() if owners[id(getattr(base_layer(layer), "weight", None))] > 1}


def fold_offset(layer: LoraLayer, start: Factors, eta: float) -> float:
    """Subtracts eta B0 A0 from a layer's weight, in place.

    Args:
        layer: the layer.
        start: A0 and B0.
        eta: the adapter's scaling.

    Returns:
        The share of ||eta B0 A0||_F that rounding lost.
    """
    weight = base_layer(layer).weight.data
    original, change = weight.clone(), eta * product(start)
    weight.copy_(add_to_weight(layer, weight, -change))
    back = add_to_weight(layer, weight.float(), change)
    lost = float(torch.linalg.vector_norm(back - original.float()))
    norm = eta * product_norm(start)
    return lost / norm if norm > 0 else 0.0
