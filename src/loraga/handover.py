"""Starts for tools that know only plain PEFT: `PeftModel.from_pretrained(base, directory, is_trainable=True)`.

mirrored    [A0; A0] and [B0, -B0], rank 2r, on the original base: it adds nothing, and all of it can be trained.
One SGD step of half the learning rate moves the weight as LoRA-GA's step does, but for what is
quadratic in the rate; later it is a method of its own.
residual    W - eta B0 A0 as a model directory, and A0, B0 of rank r to be trained on it: LoRA-GA at every step, on a
base that must be kept with the adapter, or taken off it by `load`.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from .adapter_directory import (
    COMPANIONS,
    RECIPE_NAME,
    REPORT_NAME,
    adapter_layout,
    read_config,
    read_recipe,
    read_report,
    save_alone,
    write_plain_lora,
)
from .checksum import tensor_checksum
from .errors import AdapterError, OffsetError, SaveError
from .exporting import Exported
from .files import staged_directory
from .layers import active_adapter, lora_layers, require_unmerged
from .layout import split
from .offset import has_offset, is_folded, offset_of, trained_factors
from .preconditions import require_peft_model
from .report import product_norm
from .residual import base_name, probes
from .residual_record import MIRRORED, RESIDUAL, START, ResidualLayer, ResidualRecord, read_record
from .undo import same_configs_on_error
from .weights import float_weight

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn

# What transformers would read before, or beside, the weights that are written now.
STALE = {"config.json": ("model.safetensors", "model.safetensors.index.json"), **COMPANIONS}


def save_mirrored(model: nn.Module, directory: str | os.PathLike[str], *, adapter_name: str | None = None) -> Exported:
    """Writes the start of an adapter as a plain LoRA of twice its rank, all of which is to be trained.

    On the original base it changes nothing, since its two halves cancel. It is what `save_pretrained` writes of an
    untrained adapter, without the `loraga.json` by which `load` would take it apart again.

    Args:
        model: a PeftModel that `initialize` has started with an offset; it is not changed.
        directory: where to; a complete directory there is replaced only by a complete one.
        adapter_name: the adapter; by default the active one.

    Returns:
        What was written.

    Raises:
        AdapterError: if the adapter has no start, or is trained already.
        SaveError: if the directory cannot be written.
    """
    peft_model = require_peft_model(model)
    name = adapter_name or active_adapter(peft_model)
    require_untrained_start(lora_layers(peft_model, name), name, "initialise it with loraga.initialize first")
    ranks = {layer: layout.disk_rank for layer, layout in adapter_layout(peft_model, name).items()}
    target = Path(directory)
    with same_configs_on_error(peft_model), staged_directory(target, COMPANIONS) as staging:
        save_alone(peft_model, name, staging)
        (staging / RECIPE_NAME).unlink()
        _name_method(staging, MIRRORED)
    return Exported(str(target), MIRRORED, ranks, dict.fromkeys(ranks, 0.0), 0.0)


def save_residual(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    max_shard_size: int | str | None = None,
    adapter_name: str | None = None,
) -> Exported:
    """Writes a base model with its start subtracted, and in its folder `adapter` the start as a plain LoRA of rank r.

    The model must be started with `offset="weights"`, which subtracts the start from the weights in memory, refuses
    those that cannot keep it, and says what rounding lost.

    Args:
        model: a PeftModel that `initialize(offset="weights")` has started; it is not changed.
        directory: where to, a new one or that of an earlier residual base.
        tokenizer: tokenizer or processor, to be written beside the model.
        max_shard_size: as transformers' `save_pretrained` takes it.
        adapter_name: the adapter; by default the active one.

    Returns:
        What was written, and what rounding lost.

    Raises:
        AdapterError: if the adapter is trained already, or merged.
        OffsetError: if its start is not subtracted from the weights.
        SaveError: if the directory holds another model, or cannot be written.
    """
    peft_model = require_peft_model(model)
    name = adapter_name or active_adapter(peft_model)
    layers = lora_layers(peft_model, name)
    remedy = "initialise it with loraga.initialize(offset='weights') first"
    require_untrained_start(layers, name, remedy)
    for layer, module in layers.items():
        if has_offset(module, name) and not is_folded(module, name):
            raise OffsetError(f"layer {layer}: its start is not subtracted from the base weight; {remedy}")
    require_unmerged(layers)
    base, target = _without_adapters(peft_model), Path(directory)
    if not hasattr(base, "save_pretrained"):
        raise SaveError(f"{type(base).__name__} has no save_pretrained, so it cannot be written as a model directory")
    if (target / "config.json").exists() and read_record(target) is None:
        raise SaveError(f"{target} holds another model, which would be lost; name another directory")
    started = {layer: module for layer, module in layers.items() if has_offset(module, name)}
    facts = _facts(started, name, getattr(peft_model, "_loraga_reports", {}).get(name))
    with same_configs_on_error(peft_model), staged_directory(target, STALE) as staging:
        base.save_pretrained(str(staging), **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(staging))
        (staging / START).mkdir()
        state = _save_start(peft_model, name, staging / START, str(target.resolve()))
        original = str(peft_model.peft_config[name].base_model_name_or_path or base_name(base))
        ResidualRecord(original, facts, tensor_checksum(state)).write(staging)
    norms = {layer: module.scaling[name] * product_norm(offset_of(module, name)) for layer, module in started.items()}
    lost = math.hypot(*(facts[layer].rounding * norm for layer, norm in norms.items()))
    total = math.hypot(*norms.values())
    return Exported(
        str(target),
        RESIDUAL,
        {layer: module.r[name] for layer, module in layers.items()},
        {layer: fact.rounding for layer, fact in facts.items()},
        lost / total if total else 0.0,
    )


def require_untrained_start(layers: Mapping[str, LoraLayer], adapter_name: str, remedy: str) -> None:
    """Refuses an adapter that is not at its start.

    Args:
        layers: the adapter's layers.
        adapter_name: the adapter.
        remedy: what to do where there is no start.

    Raises:
        AdapterError: if it has none, or has been trained.
    """
    if not any(has_offset(layer, adapter_name) for layer in layers.values()):
        raise AdapterError(f"adapter {adapter_name!r} has no start that is subtracted; {remedy}")
    for name, layer in layers.items():
        if adapter_name not in layer.lora_A:
            continue
        now = trained_factors(layer, adapter_name)
        at_start = not bool(now.B.any())
        if has_offset(layer, adapter_name):
            start = offset_of(layer, adapter_name)
            at_start = torch.equal(now.A, start.A) and torch.equal(now.B, start.B)
        if not at_start:
            raise AdapterError(
                f"layer {name}: adapter {adapter_name!r} is trained already, so it is no start; save it as it is by "
                "save_pretrained"
            )


def _facts(layers: Mapping[str, LoraLayer], name: str, report: Mapping[str, Any] | None) -> dict[str, ResidualLayer]:
    reported = (report or {}).get("layers", {})
    facts = {}
    for layer, module in layers.items():
        weight, rounding = float_weight(module), reported.get(layer, {}).get("rounding", 0.0)
        if weight is None:
            raise SaveError(f"layer {layer}: its weight is not in this process, so it cannot be written")
        at = tuple(probes(weight, offset_of(module, name)).tolist())
        facts[layer] = ResidualLayer(module.r[name], module.scaling[name], at, rounding)
    return facts


def _without_adapters(model: PeftModel) -> Any:
    """The base model as it was before PEFT: a copy of its modules, which shares their tensors."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    base: Any = copy.deepcopy(model.base_model, shared)
    return base.unload()


def _save_start(model: PeftModel, name: str, directory: Path, base: str) -> dict[str, Tensor]:
    """Writes an untrained adapter at its own rank, for the residual base; gives its tensors."""
    save_alone(model, name, directory)
    recipe = read_recipe(directory)
    ranks = {} if recipe is None else recipe.ranks
    parts = split(load_file(directory / SAFETENSORS_WEIGHTS_NAME), ranks, str(directory))
    state = {key: tensor for key, tensor in parts.items() if ".lora_offset_" not in key}
    layout = {layer: replace(each, offset=False) for layer, each in adapter_layout(model, name).items()}
    write_plain_lora(directory, state, layout)
    (directory / RECIPE_NAME).unlink()
    config = read_config(directory)
    (directory / CONFIG_NAME).write_text(
        json.dumps({**config, "base_model_name_or_path": base}, indent=2, sort_keys=True)
    )
    _name_method(directory, RESIDUAL)
    return state


def _name_method(directory: Path, method: str) -> None:
    """Says in the adapter's report how its start is kept from changing the function."""
    report = read_report(directory) or {}
    (directory / REPORT_NAME).write_text(json.dumps({**report, "offset": method}, indent=2))
