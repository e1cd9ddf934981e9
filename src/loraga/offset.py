"""The offset of one layer: what is subtracted so that a non-zero start leaves the function as it was.

y = W x + eta * (B A x - B0 A0 x), with A0 and B0 the start, kept as buffers: out of the optimizer and of the parameter
counts, in every state dict. PEFT's dispatch for LoRA variants carries the forward and the merges; that interface is
private to PEFT, so what a layer's class does with it is looked at before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import OffsetError
from .scheme import Factors

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

OFFSET_A, OFFSET_B = "lora_offset_A", "lora_offset_B"


class OffsetVariant(LoraVariant):
    """LoRA whose start is subtracted: PEFT calls these instead of its own forward and merges."""

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Does nothing: the offset is attached by `attach_offset`."""

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Adds eta * (B A - B0 A0) x to the base layer's result.

        It is computed as [B, B - B0] [(A - A0) x, A0 x], after one dropout for both. At the start the differences of
        the factors are exactly zero, and so is what is added, in train mode too and whatever the kernels; two products
        of twice the rank cost less than four and a difference of outputs.
        """
        A, B = _linear(module.lora_A[active_adapter]), _linear(module.lora_B[active_adapter])
        start = offset_of(module, active_adapter)
        A0, B0 = start.A.to(A.weight.dtype), start.B.to(B.weight.dtype)
        x = module.lora_dropout[active_adapter](x)
        inner = F.linear(x, torch.cat([A.weight - A0, A0]))  # (..., 2 r)
        difference = F.linear(inner, torch.cat([B.weight, B.weight - B0], dim=1), B.bias)
        return result + difference * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Returns the weight with the adapter's change added in float32."""
        return _changed(module, active_adapter, orig_weight, +1)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Adds the adapter's change to the weight in place."""
        orig_weight.data.copy_(_changed(module, active_adapter, orig_weight.data, +1))

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Returns the weight with the adapter's change taken off in float32."""
        return _changed(module, active_adapter, orig_weight.data, -1)

    def supports_lora_conversion(self) -> bool:
        """PEFT's conversion to LoRA reads lora_A and lora_B alone and would lose the offset."""
        return False


def attach_offset(layer: LoraLayer, adapter_name: str, start: Factors, *, folded: bool = False) -> None:
    """Gives a layer the start to subtract, as persistent buffers keyed by the adapter's name.

    Args:
        layer: PEFT's LoRA layer.
        adapter_name: the adapter.
        start: the adapter's A0 and B0, copied.
        folded: the base weight already has the offset subtracted, so that the forward stays PEFT's own.
    """
    for attribute, factor in ((OFFSET_A, start.A), (OFFSET_B, start.B)):
        if not hasattr(layer, attribute):
            setattr(layer, attribute, BufferDict(persistent=True))
        getattr(layer, attribute)[adapter_name] = factor.detach().clone()
        if attribute not in layer.other_param_names:  # PEFT moves and deletes what is named there
            layer.other_param_names = (*layer.other_param_names, attribute)
    if not folded:
        layer.lora_variant[adapter_name] = OffsetVariant()


def detach_offset(layer: LoraLayer, adapter_name: str) -> None:
    """Removes a layer's offset, if it has one for the adapter."""
    for attribute in (OFFSET_A, OFFSET_B):
        buffers = getattr(layer, attribute, {})
        if adapter_name in buffers:
            del buffers[adapter_name]
        if hasattr(layer, attribute) and not len(buffers):
            delattr(layer, attribute)
            layer.other_param_names = tuple(name for name in layer.other_param_names if name != attribute)
            if layer.other_param_names == type(layer).other_param_names:
                del layer.other_param_names  # the class's again
    if isinstance(layer.lora_variant.get(adapter_name), OffsetVariant):
        del layer.lora_variant[adapter_name]


def has_offset(layer: LoraLayer, adapter_name: str) -> bool:
    """Whether a layer keeps a start for the adapter, subtracted in its forward or folded into its weight."""
    return adapter_name in getattr(layer, OFFSET_A, {})


def is_folded(layer: LoraLayer, adapter_name: str) -> bool:
    """Whether the start is subtracted from the base weight itself."""
    return has_offset(layer, adapter_name) and not isinstance(layer.lora_variant.get(adapter_name), OffsetVariant)


def offset_of(layer: LoraLayer, adapter_name: str) -> Factors:
    """The start A0 (r, d_in) and B0 (d_out, r) that a layer subtracts."""
    return Factors(A=getattr(layer, OFFSET_A)[adapter_name], B=getattr(layer, OFFSET_B)[adapter_name])


def trained_factors(layer: LoraLayer, adapter_name: str) -> Factors:
    """The adapter's own A (r, d_in) and B (d_out, r) as they are now, detached."""
    A, B = _linear(layer.lora_A[adapter_name]), _linear(layer.lora_B[adapter_name])
    return Factors(A=A.weight.detach(), B=B.weight.detach())


def require_offset_support(name: str, layer: LoraLayer, adapter_name: str) -> None:
    """Refuses a layer that cannot subtract a start.

    Args:
        name: the layer's name, for the message.
        layer: PEFT's LoRA layer.
        adapter_name: the adapter.

    Raises:
        OffsetError: if another LoRA variant (DoRA, ...) is in use, or the class ignores variants.
    """
    remedy = "use offset='none'"
    variant = layer.lora_variant.get(adapter_name)
    if variant is not None:
        raise OffsetError(f"layer {name}: {type(variant).__name__} is in use and cannot carry an offset; {remedy}")
    if not _consults_variants(layer, "forward"):
        kind = f"{type(layer).__module__}.{type(layer).__name__}"
        raise OffsetError(f"layer {name}: PEFT's {kind} cannot carry an offset; {remedy}")


def merge_loses_offset(layer: LoraLayer, adapter_name: str) -> bool:
    """Whether PEFT's merge of this layer's class would merge B A alone and leave the start that is subtracted out."""
    subtracted = has_offset(layer, adapter_name) and not is_folded(layer, adapter_name)
    return subtracted and not (_consults_variants(layer, "merge") and _consults_variants(layer, "unmerge"))


def _consults_variants(layer: LoraLayer, method: str) -> bool:
    """Whether the class's method asks PEFT's variant what to do."""
    function = getattr(type(layer), method, None)
    return "lora_variant" in getattr(getattr(function, "__code__", None), "co_names", ())


def _changed(layer: LoraLayer, adapter_name: str, weight: Tensor, sign: int) -> Tensor:
    start, now = offset_of(layer, adapter_name), trained_factors(layer, adapter_name)
    change = product(now) - product(start)  # (d_out, d_in), float32
    return add_to_weight(layer, weight, sign * layer.scaling[adapter_name] * change)


def product(factors: Factors) -> Tensor:
    """B A in float32, whatever the caller's autocast says, (d_out, d_in)."""
    with torch.autocast(factors.A.device.type, enabled=False):
        return factors.B.float() @ factors.A.float()


def add_to_weight(layer: LoraLayer, weight: Tensor, change: Tensor) -> Tensor:
    """Adds a change to a weight in float32 and returns the sum in the weight's dtype.

    Args:
        layer: the layer, which knows whether its weight is stored transposed.
        weight: (d_out, d_in), or its transpose under fan_in_fan_out.
        change: (d_out, d_in), float32.

    Returns:
        The changed weight, in the weight's own orientation, dtype and device.
    """
    change = change.to(weight.device)
    if getattr(layer, "fan_in_fan_out", False):
        change = change.T
    return (weight.to(torch.float32) + change).to(weight.dtype)


def _linear(module: nn.Module) -> nn.Linear:
    return cast("nn.Linear", module)
