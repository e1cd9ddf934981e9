"""Which layers of a model LoRA-GA speaks of: the linear layers under a PEFT adapter, named as in the base model."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from .capture import is_linear
from .errors import AdapterError
from .quantization import is_untested, why_untested

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

PEFT_PREFIX = "base_model.model."
# excluded by PEFT's "all-linear" too: they are trained in full
CLASSIFICATION_HEADS = ("score", "classifier")


def target_layers(model: nn.Module, adapter_name: str | None = None) -> dict[str, nn.Module]:
    """Finds the linear layers whose gradient is wanted.

    Args:
        model: a PeftModel, of which the layers under the adapter are taken, or a plain model, of which all linear
            layers are taken but the output embeddings and a classification head.
        adapter_name: the adapter; by default the active one.

    Returns:
        {name in the base model: the base model's own linear layer}; other kinds of layers are left out.

    Raises:
        AdapterError: if there is no such adapter, it is merged, the layers were not wrapped by `get_peft_model`, or a
            plain model has a linear layer quantised by a package that is not known here.
    """
    if isinstance(model, PeftModel):
        wrapped = lora_layers(model, adapter_name or active_adapter(model))
        require_unmerged(wrapped)
        layers = {name: base_layer(layer) for name, layer in wrapped.items()}
    else:
        require_not_injected(model)
        layers = {name: module for name, module in model.named_modules() if not _is_excluded(model, name, module)}
        for name, module in layers.items():
            if is_untested(module):
                raise AdapterError(f"layer {name}: {why_untested(module)}")
    layers = {name: layer for name, layer in layers.items() if is_linear(layer)}
    if not layers:
        raise AdapterError(f"{type(model).__name__} has no linear layer to estimate a gradient for")
    return layers


def lora_layers(model: PeftModel, adapter_name: str) -> dict[str, LoraLayer]:
    """Finds the LoRA layers that hold an adapter.

    Args:
        model: the PeftModel.
        adapter_name: the adapter.

    Returns:
        {name in the base model: PEFT's layer}, in the model's order.

    Raises:
        AdapterError: if there is no such LoRA adapter.
    """
    if adapter_name not in model.peft_config:
        raise AdapterError(f"there is no adapter {adapter_name!r}; the model has {', '.join(model.peft_config)}")
    layers = {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter_name in {*module.lora_A, *module.lora_embedding_A}
    }
    if not layers:
        kind = model.peft_config[adapter_name].peft_type
        raise AdapterError(f"adapter {adapter_name!r} is {kind}, not a LoRA adapter on linear layers")
    return layers


def require_unmerged(layers: Mapping[str, LoraLayer]) -> None:
    """Refuses layers whose base weight is not the base model's own.

    Args:
        layers: the layers.

    Raises:
        AdapterError: if an adapter is merged into one.
    """
    for name, layer in layers.items():
        if layer.merged:
            raise AdapterError(f"layer {name}: an adapter is merged into the base weight; call unmerge_adapter() first")


def base_layer(layer: LoraLayer) -> Any:
    """The base model's own layer under PEFT's LoRA layers."""
    module: Any = layer  # torch's and PEFT's annotations disagree on what a module's methods are
    return module.get_base_layer()


def active_adapter(model: PeftModel) -> str:
    """Name of the one active adapter.

    Args:
        model: the PeftModel.

    Returns:
        The name.

    Raises:
        AdapterError: if there is none or more than one.
    """
    active = list(model.active_adapters)
    if len(active) != 1:
        raise AdapterError(f"the active adapters are {active}; pass adapter_name= to say which one is meant")
    return str(active[0])


def require_not_injected(model: nn.Module) -> None:
    """Refuses a model whose LoRA layers have no PeftModel around them.

    Args:
        model: a model that is not a PeftModel.

    Raises:
        AdapterError: if it holds LoRA layers.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise AdapterError(
            "the adapter was injected by the model's own add_adapter(); wrap the base model with "
            "peft.get_peft_model(base, LoraConfig(...)) instead, so that it can be saved with its start"
        )


@contextmanager
def without_lora(model: nn.Module, adapter_name: str | None = None) -> Iterator[None]:
    """Runs the block without any low-rank change, but with what an adapter trains whole: modules_to_save, tokens.

    That is the model that the adapter's factors are added to. PEFT's own `disable_adapter()` takes the original
    modules, also where a head was trained or loaded before, and sets `requires_grad` anew when it ends.

    Args:
        model: any model; one without adapters is left alone.
        adapter_name: the adapter; by default the active one.

    Yields:
        Nothing.
    """
    if not isinstance(model, PeftModel):
        yield
        return
    with _switched(model, adapter_name or active_adapter(model), lora=False):
        yield


@contextmanager
def only_adapter(model: PeftModel, adapter_name: str) -> Iterator[None]:
    """Runs the block with one adapter active and enabled, whichever are so now.

    Args:
        model: the PeftModel.
        adapter_name: the adapter.

    Yields:
        Nothing.
    """
    with _switched(model, adapter_name, lora=True):
        yield


@contextmanager
def _switched(model: PeftModel, adapter_name: str, *, lora: bool) -> Iterator[None]:
    switches = adapter_switches(model)
    before = [(module._active_adapter, module._disable_adapters) for module in switches]
    try:
        for module in switches:
            module._active_adapter = _active(module, adapter_name)
            module._disable_adapters = isinstance(module, LoraLayer) and not lora
        yield
    finally:
        for module, (active, disabled) in zip(switches, before, strict=True):
            module._active_adapter, module._disable_adapters = active, disabled


def adapter_switches(model: nn.Module) -> list[Any]:
    """The modules by which adapters are switched: PEFT's layers, and its wrappers of fully trained modules."""
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def _active(module: Any, adapter_name: str) -> list[str]:
    """A module without this adapter runs the original one, which it does where none is active."""
    is_wrapper = isinstance(module, AuxiliaryTrainingWrapper)
    held = module._adapters if is_wrapper else module._get_available_adapters()
    return [adapter_name] if adapter_name in held else []


def _is_excluded(model: nn.Module, name: str, module: nn.Module) -> bool:
    get_output = getattr(model, "get_output_embeddings", None)
    if get_output is not None and module is get_output():
        return True
    return name in CLASSIFICATION_HEADS and "Classification" in type(model).__name__
