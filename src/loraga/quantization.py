"""Quantised linear layers: whose they are, which are known here, and what keeps a gradient from passing through one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from torch import Tensor, nn

from .errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The packages that replace linear layers (or their weights) by quantised ones, by the root of their modules' names.
BACKENDS = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "hqq": "HQQ",
    "gptqmodel": "GPTQModel (GPTQ, AWQ)",
    "auto_gptq": "AutoGPTQ",
    "awq": "AutoAWQ",
    "aqlm": "AQLM",
    "eetq": "EETQ",
    "vptq": "VPTQ",
    "optimum": "Quanto",
    "neural_compressor": "Intel Neural Compressor",
    "compressed_tensors": "compressed-tensors",
    "auto_round": "AutoRound",
}
TESTED = "bitsandbytes 4-bit and 8-bit, torchao int8 and HQQ"
REPACKED = "packing_format_for_cpu"  # bitsandbytes sets it on the state of a weight that it repacked


def backend(layer: nn.Module) -> str | None:
    """Name of the package that quantised a layer; None where it is not one that is known."""
    kinds = (*type(layer).__mro__, *type(getattr(layer, "weight", None)).__mro__)
    roots = (kind.__module__.partition(".")[0] for kind in kinds)
    return next((BACKENDS[root] for root in roots if root in BACKENDS), None)


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer's weight is stored in a quantised form."""
    if backend(layer) is not None:
        return True
    weight: Any = getattr(layer, "weight", None)
    if weight is None:  # experts, whose weights have other names
        return False
    return not weight.is_floating_point() or weight.element_size() == 1 or type(weight.data) is not Tensor


def is_hqq(module: nn.Module) -> bool:
    """Whether a module is HQQ's linear layer, a kind of its own: no nn.Linear, and without a `weight`."""
    return type(module).__name__ == "HQQLinear" and backend(module) == BACKENDS["hqq"]


def is_untested(module: nn.Module) -> bool:
    """Whether a module is a linear layer of a package that replaces nn.Linear by a class that is not known here."""
    is_linear = isinstance(module, nn.Linear) or is_hqq(module)
    shaped = hasattr(module, "in_features") and hasattr(module, "out_features")
    return not is_linear and shaped and backend(module) is not None


def why_untested(module: nn.Module) -> str:
    """Why a layer for which `is_untested` holds cannot be started, and what can be done."""
    return (
        f"a {type(module).__name__} of {backend(module)} replaces the linear layer by a class whose gradient and "
        f"offset this package has no test of; load the model unquantised, or quantised by one that has: {TESTED}"
    )


def require_gradients(model: nn.Module) -> None:
    """Refuses a model with 4-bit layers through which no gradient passes.

    On processors with AVX512-BF16, the first forward of a bitsandbytes 4-bit layer in eval mode repacks its weight in
    place, rounds its scales to bfloat16, and from then on uses a kernel without autograd, in train mode too.

    Args:
        model: any model.

    Raises:
        AdapterError: if a layer's weight was repacked.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    repacked = [name.removesuffix(".base_layer") for name, module in base.named_modules() if is_repacked(module)]
    if repacked:
        more = f" and {len(repacked) - 1} more" if len(repacked) > 1 else ""
        raise AdapterError(
            f"layer {repacked[0]}{more}: bitsandbytes repacked its 4-bit weight for inference, in a forward in eval "
            "mode on this processor, and no gradient passes through it any more. Load the base again, and before it "
            "is evaluated set support_avx512bf16_for_cpu = False on each of its Linear4bit layers, or evaluate it in "
            "train mode"
        )


@contextmanager
def repacked_weights_kept(model: nn.Module) -> Iterator[None]:
    """Lets `state_dict()` be asked without damage to 4-bit layers that bitsandbytes repacked.

    Their part of a state dict is made by unpacking the weight in place, which does not bring the scales back: the
    layer is another one afterwards. In the block the state dict has the weight as it is packed, which is of use to
    nobody, and no adapter is made of it.

    Args:
        model: any model.

    Yields:
        Nothing.
    """
    states = [_state(module) for module in model.modules() if is_repacked(module)]
    try:
        for state in states:
            setattr(state, REPACKED, False)
        yield
    finally:
        for state in states:
            setattr(state, REPACKED, True)


def is_repacked(module: nn.Module) -> bool:
    """Whether bitsandbytes repacked a layer's 4-bit weight for inference: it has no gradient, and cannot be read."""
    return bool(getattr(_state(module), REPACKED, False))


def _state(module: nn.Module) -> Any:
    own = module._parameters.get("weight")  # a PEFT layer has a `weight` too, its base layer's
    return getattr(own, "quant_state", None)
