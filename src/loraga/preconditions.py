"""What must hold before an adapter is initialised; every refusal names the layer and the remedy."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from peft import PeftModel, PeftType
from peft.tuners.lora import ParamWrapper

from .capture import is_linear, layer_shape
from .errors import AdapterError, GradientError, OffsetError, ScalingError
from .layers import base_layer, require_not_injected
from .offset import has_offset, require_offset_support, trained_factors
from .quantization import is_untested, why_untested
from .sharding import whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft.tuners.lora import LoraLayer
    from torch import nn

    from .gradient import LowRankGradient
    from .scheme import Scheme

CHANGES_BASE = ("lora_ga", "pissa", "olora", "corda", "loftq")  # of PEFT's init_lora_weights
NAMED_LAYERS = 5  # layers that a message about many of them names


def require_peft_model(model: nn.Module) -> PeftModel:
    """Refuses a model that `get_peft_model` has not wrapped.

    Args:
        model: any model.

    Returns:
        The model.

    Raises:
        AdapterError: if it is not a PeftModel.
    """
    if isinstance(model, PeftModel):
        return model
    require_not_injected(model)
    raise AdapterError(
        f"{type(model).__name__} has no LoRA adapter; wrap it first: model = peft.get_peft_model(base, "
        "LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules='all-linear'))"
    )


def require_plain_lora(model: PeftModel, adapter_name: str) -> None:
    """Refuses an adapter of another kind than LoRA, or one that takes part in some tokens only.

    Args:
        model: the model.
        adapter_name: the adapter.

    Raises:
        AdapterError: if it is AdaLoRA's, or an activated LoRA.
    """
    config = model.peft_config[adapter_name]
    if config.peft_type != PeftType.LORA:
        raise AdapterError(
            f"adapter {adapter_name!r} is {PeftType(config.peft_type).value}; only plain LoRA can be initialised: make "
            "it with LoraConfig"
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise AdapterError(
            f"adapter {adapter_name!r} has alora_invocation_tokens: it takes part from those tokens on, and the "
            "gradient is that of all; leave them out"
        )


def require_unchanged_base(model: PeftModel, adapter_name: str) -> None:
    """Refuses an adapter whose start PEFT subtracted from the base weights, by what its config says.

    Args:
        model: the model.
        adapter_name: the adapter.

    Raises:
        AdapterError: if init_lora_weights names such a start.
    """
    config = model.peft_config.get(adapter_name)
    start = str(getattr(config, "init_lora_weights", True)).lower()
    if start.startswith(CHANGES_BASE):
        raise AdapterError(
            f"adapter {adapter_name!r} has init_lora_weights={start!r}: PEFT changes the base weights by such a start, "
            "and the adapter is for those. To initialise, take a new adapter of LoraConfig(init_lora_weights=True) on "
            "the original base. A trained one becomes a plain LoRA if it is saved by save_pretrained, and `loraga "
            "export` is given --initial (loraga.load: initial=), the adapter from before training; merge=True works too"
        )


def require_untrained(layers: Mapping[str, LoraLayer], adapter_name: str) -> None:
    """Refuses an adapter that no longer is the no-op that PEFT made.

    Args:
        layers: the adapter's layers.
        adapter_name: the adapter.

    Raises:
        AdapterError: if it was initialised before, trained, or started otherwise, or is not there yet.
    """
    for name, layer in layers.items():
        if adapter_name in layer.lora_B and trained_factors(layer, adapter_name).B.is_meta:
            raise AdapterError(
                f"layer {name}: adapter {adapter_name!r} is on the meta device, without numbers: its base layer is "
                "offloaded, or it was made with low_cpu_mem_usage=True; put the adapted layers on a device first"
            )
        if has_offset(layer, adapter_name):
            raise AdapterError(f"layer {name}: adapter {adapter_name!r} is initialised already")
        if adapter_name in layer.lora_B and bool(whole(trained_factors(layer, adapter_name).B).any()):
            raise AdapterError(
                f"layer {name}: adapter {adapter_name!r} is trained already, or was made with an init_lora_weights "
                "that leaves B non-zero; initialise a new adapter of LoraConfig(init_lora_weights=True)"
            )


def unsupported_layers(layers: Mapping[str, LoraLayer], adapter_name: str, carries_offset: bool) -> dict[str, str]:
    """Finds the adapter's layers that cannot be started.

    Args:
        layers: the adapter's layers.
        adapter_name: the adapter.
        carries_offset: the layers' own forward must subtract the start.

    Returns:
        {layer: why}.
    """
    reasons = {}
    for name, layer in layers.items():
        base = base_layer(layer)
        if isinstance(layer, ParamWrapper):
            reasons[name] = (
                f"its parameter {layer.parameter_name} is adapted by PEFT's target_parameters, which changes the "
                f"parameter itself, so that a {type(base).__name__} has no input and output to take the gradient from"
            )
        elif is_untested(base):
            reasons[name] = why_untested(base)
        elif not is_linear(base) or adapter_name not in layer.lora_A:
            reasons[name] = f"a {type(base).__name__} is not a linear layer"
        elif carries_offset:
            try:
                require_offset_support(name, layer, adapter_name)
            except OffsetError as error:
                reasons[name] = str(error).removeprefix(f"layer {name}: ")
    return reasons


def layers_without_gradient(
    layers: Mapping[str, LoraLayer], gradients: Mapping[str, LowRankGradient]
) -> dict[str, str]:
    """Finds the layers that the loss does not depend on.

    Args:
        layers: the adapter's layers.
        gradients: what was estimated.

    Returns:
        {layer: why}.
    """
    reasons = {}
    for name in layers:
        if name not in gradients:
            reasons[name] = (
                "it got no gradient: the loss of these batches does not depend on it, or the model reads its weight "
                "without calling it, so that no adapter on it takes part"
            )
        elif gradients[name].directions == 0:
            reasons[name] = "its gradient is zero for these batches"
    return reasons


def stop_or_warn(reasons: Mapping[str, str], on_missing: str, error: type[AdapterError] | type[GradientError]) -> None:
    """Raises for layers that cannot be started, or says that they stay plain LoRA.

    Args:
        reasons: {layer: why}.
        on_missing: "error" or "lora".
        error: what to raise.

    Raises:
        error: if there is a reason and on_missing is "error".
    """
    if not reasons:
        return
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    text = "; ".join(f"{_named(names)}: {reason}" for reason, names in layers.items())
    if on_missing == "error":
        raise error(
            f"{text}. Leave out of target_modules and target_parameters, or pass on_missing='lora' to keep plain LoRA "
            "there"
        )
    warnings.warn(f"kept as plain LoRA: {text}", stacklevel=4)


def require_scaling(layers: Mapping[str, LoraLayer], adapter_name: str, scheme_name: str, scheme: Scheme) -> None:
    """Refuses a scaling that the scheme was not derived for.

    Args:
        layers: the adapter's layers.
        adapter_name: the adapter.
        scheme_name: for the message.
        scheme: declares its eta.

    Raises:
        ScalingError: if a layer's scaling is another one.
    """
    for name, layer in layers.items():
        alpha, rank, scaling = (
            layer.lora_alpha[adapter_name],
            layer.r[adapter_name],
            layer.scaling[adapter_name],
        )
        expected = scheme.eta(alpha, rank)
        if not math.isclose(scaling, expected, rel_tol=1e-6):
            raise ScalingError(
                f"layer {name}: its scaling is {scaling:g} and scheme {scheme_name!r} needs {expected:g} "
                f"(lora_alpha {alpha:g}, r {rank}); make the adapter with "
                f"LoraConfig(use_rslora={not layer.use_rslora[adapter_name]})"
            )


def require_fitting(layers: Mapping[str, LoraLayer], gradients: Mapping[str, LowRankGradient]) -> None:
    """Refuses gradients of another model.

    Args:
        layers: the adapter's layers.
        gradients: {layer: gradient}.

    Raises:
        GradientError: if none of the layers is among them, or a shape differs.
    """
    if layers and not set(layers) & set(gradients):
        raise GradientError(
            f"the gradients are of another model: they name {next(iter(gradients), 'nothing')}, "
            f"the adapter has {next(iter(layers))}"
        )
    for name, layer in layers.items():
        shape = layer_shape(base_layer(layer))
        if name in gradients and gradients[name].shape != shape:
            raise GradientError(
                f"the gradients are of another model: layer {name} has shape {shape}, "
                f"its gradient {gradients[name].shape}"
            )


def warn_of_few_directions(directions: Mapping[str, tuple[int, int]]) -> None:
    """Says which layers have fewer singular directions than a start needs.

    Args:
        directions: {layer: (directions found, rank)}.
    """
    few = {name: pair for name, pair in directions.items() if pair[0] < 2 * pair[1]}
    if not few:
        return
    text = "; ".join(
        f"layer {name} has {found} singular directions and rank {rank} wants {2 * rank}"
        for name, (found, rank) in list(few.items())[:NAMED_LAYERS]
    )
    more = f"; and {len(few) - NAMED_LAYERS} more layers, see the report" if len(few) > NAMED_LAYERS else ""
    warnings.warn(
        f"{text}{more}. The missing columns of B start at zero and the missing rows of A as in plain LoRA; use a "
        "smaller rank or more loss terms",
        stacklevel=4,
    )


def require_choice(keyword: str, value: object, choices: Mapping[str, object] | tuple[str, ...]) -> None:
    """Refuses a keyword's value that is not among its choices.

    Args:
        keyword: the keyword's name.
        value: what was passed.
        choices: what may be passed.

    Raises:
        AdapterError: if it is none of them.
    """
    if value not in choices:
        raise AdapterError(f"{keyword}={value!r} is unknown; choose from {', '.join(map(repr, choices))}")


def _named(layers: list[str]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    more = f" and {len(layers) - NAMED_LAYERS} more" if len(layers) > NAMED_LAYERS else ""
    return f"layers {', '.join(layers[:NAMED_LAYERS])}{more}"
