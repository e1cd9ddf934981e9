"""An adapter that was trained on a residual base, W - eta B0 A0, taken back to the original base.

The start lies beside the residual base, so what was trained there is known to be eta (B A - B0 A0) on the original one:
the same as an adapter with an offset, folded into the weights or not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file

from .adapter import carry
from .checksum import tensor_checksum
from .errors import AdapterError, OffsetError, SaveError
from .layers import base_layer, lora_layers
from .layout import weight_key
from .offset import attach_offset, has_offset, require_offset_support, trained_factors
from .quantization import is_quantized
from .residual_record import RECORD, START, ResidualRecord, read_record, residual_base_of
from .scheme import Factors
from .weights import float_weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn

# ||difference of probes|| over ||probes of the original||: rounding to 16 bits moves them by 0.02 at most, to 4 bits by
# 0.1, and another model's differ by 1.4
SAME_WEIGHTS, SAME_QUANTIZED_WEIGHTS = 0.05, 0.5


def probes(weight: Tensor, start: Factors) -> Tensor:
    """b_i^T W a_i, for the i-th column of B0 and row of A0.

    Args:
        weight: (d_out, d_in).
        start: A0 (r, d_in) and B0 (d_out, r).

    Returns:
        (r,), float64, on the CPU.
    """
    A, B = start.A.to(weight.device, torch.float32), start.B.to(weight.device, torch.float32)
    return ((weight.float() @ A.T).double() * B.double()).sum(dim=0).cpu()


def probes_of_start(start: Factors, eta: float) -> Tensor:
    """The same of eta B0 A0: by how much the original's are larger than the residual weight's, (r,), float64."""
    A, B = start.A.double(), start.B.double()
    return (eta * ((B.T @ B) * (A @ A.T)).sum(dim=1)).cpu()


def require_base_of(adapter: Path, config: Mapping[str, object], given: str) -> tuple[Path, ResidualRecord] | None:
    """Finds the residual base that an adapter is for, and refuses one for the original base on a residual one.

    Args:
        adapter: the adapter's directory.
        config: its adapter_config.json.
        given: name or path of the base model that it is to be loaded onto.

    Returns:
        Its directory and record; None where the adapter is for an original base, and is given one.

    Raises:
        OffsetError: if the adapter is for the original base and the base is a residual one.
        SaveError: if a record is damaged.
    """
    place, record = residual_base_of(adapter, config, given)
    if place is not None and record is not None:
        return place, record
    if is_residual_base(given):
        raise OffsetError(
            f"{adapter} is for the original base, and {given} is a residual base (its {RECORD} says so), whose weights "
            "are other ones; load the adapter onto the original base"
        )
    return None


def is_residual_base(name: str) -> bool:
    """Whether a base model's name is the directory of a residual base."""
    return bool(name) and read_record(Path(name)) is not None


def attach_residual_start(model: PeftModel, adapter_name: str, place: Path, record: ResidualRecord) -> None:
    """Makes a plain adapter that was trained on a residual base one with an offset, in place.

    Args:
        model: the adapter on the residual base or on the original one, which its weights tell.
        adapter_name: the adapter.
        place: the residual base's directory.
        record: its record.

    Raises:
        OffsetError: if the base is neither of the two.
        SaveError: if the start is damaged or does not fit.
    """
    layers, starts = lora_layers(model, adapter_name), read_start(place, record)
    for name, layer in record.layers.items():
        if name not in layers or layers[name].r.get(adapter_name) != layer.rank:
            raise SaveError(
                f"layer {name} of rank {layer.rank}, which {place / RECORD} names, is not in the adapter: it "
                "was trained on another base, or at another rank"
            )
        require_offset_support(name, layers[name], adapter_name)
    folded = has_residual_weights(layers, starts, record)
    for name, start in starts.items():
        device = trained_factors(layers[name], adapter_name).A.device
        attach_offset(layers[name], adapter_name, Factors(A=start.A.to(device), B=start.B.to(device)), folded=folded)
    carry(model)
    model.peft_config[adapter_name].base_model_name_or_path = record.original or None


def has_residual_weights(
    layers: Mapping[str, LoraLayer], starts: Mapping[str, Factors], record: ResidualRecord
) -> bool:
    """Whether the base weights under an adapter are the residual ones; if not, they are the original ones.

    Args:
        layers: PEFT's layers.
        starts: {layer: start}.
        record: of the residual base.

    Returns:
        True for the residual base, False for the original.

    Raises:
        OffsetError: if they are neither, or cannot be read.
    """
    squared = {True: 0.0, False: 0.0}  # differences from the residual base, and from the original
    total, found = 0.0, set()
    for name, start in starts.items():
        weight = float_weight(layers[name])
        if weight is None:
            raise OffsetError(
                f"layer {name}: its weight cannot be read here, so it is unknown which base this is; load the base "
                "again, whole, and evaluate it after the adapter is loaded (a 4-bit one may be repacked by that)"
            )
        residual = torch.tensor(record.layers[name].probes, dtype=torch.float64)
        known = {True: residual, False: residual + probes_of_start(start, record.layers[name].scaling)}
        now = probes(weight, start)
        far = {base: float((now - each).square().sum()) for base, each in known.items()}
        if far[True] != far[False]:  # else its start is zero
            found.add(far[True] < far[False])
        squared = {base: squared[base] + far[base] for base in far}
        total += float(known[False].square().sum())
    nearer = squared[True] < squared[False]
    quantized = any(is_quantized(base_layer(layers[name])) for name in starts)
    same = SAME_QUANTIZED_WEIGHTS if quantized else SAME_WEIGHTS
    if len(found) > 1 or not math.sqrt(squared[nearer]) <= same * math.sqrt(total):
        raise OffsetError(
            "the base is neither the residual base that the adapter was trained on nor, in all layers, its original "
            f"({record.original or 'which had no name'})"
        )
    return nearer


def read_start(place: Path, record: ResidualRecord) -> dict[str, Factors]:
    """Reads the start beside a residual base.

    Args:
        place: the residual base's directory.
        record: its record.

    Returns:
        {layer: A0 and B0}.

    Raises:
        SaveError: if it is missing, or not what was written with the record.
    """
    path = place / START / SAFETENSORS_WEIGHTS_NAME
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SaveError(f"{path}, the start of the residual base, cannot be read ({error})") from error
    if tensor_checksum(state) != record.sha256:
        raise SaveError(
            f"{path} is not the start that was written with {place / RECORD} (their checksums differ): what a tool "
            "trains belongs into a directory of its own. Write the residual base again: the same recipe gives the same"
        )
    return {name: Factors(A=state[weight_key(name, "A")], B=state[weight_key(name, "B")]) for name in record.layers}


def require_known_start(model: PeftModel, adapter_name: str, layers: Mapping[str, LoraLayer]) -> None:
    """Refuses an adapter on a residual base that plain PEFT has loaded, since its start is not in the model.

    Args:
        model: the model.
        adapter_name: the adapter.
        layers: its layers.

    Raises:
        AdapterError: if what would be written were for the residual base.
    """
    base = base_name(model.get_base_model())
    if not any(has_offset(layer, adapter_name) for layer in layers.values()) and is_residual_base(base):
        raise AdapterError(
            f"the base {base} is a residual base, and plain PEFT has loaded the adapter, so the start is not in the "
            "model; load it with loraga.load(base, directory), and export that"
        )


def base_name(base: nn.Module) -> str:
    """A base model's name or path; empty if it has none."""
    return str(getattr(base, "name_or_path", "") or "")
