"""The start that was subtracted from a base model, read off the two models' weights: W0 - W = eta B0 A0.

Half precision rounds each entry of W, and a GPU may compute the product in TF32; a difference that is farther than that
from every product of the adapter's rank is not its start.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .capture import is_linear
from .errors import SaveError
from .gradient import Matrix, factor_sum, layer_generator, random_directions
from .layers import PEFT_PREFIX
from .quantization import is_quantized
from .scheme import Factors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .saved_adapter import SavedAdapter, SavedLayer

OVERSAMPLING = 16  # directions beyond the rank, so that a difference of higher rank is seen
INEXACT = 1e-6  # of a weight's norm: what float32 rounds

logger = logging.getLogger("loraga")


def start_of_changed_base(trained: SavedAdapter, base: nn.Module, changed: nn.Module) -> dict[str, Factors]:
    """Takes the start from the base weights that it was subtracted from.

    Args:
        trained: the trained adapter.
        base: the original base model.
        changed: the base model that the adapter was trained on.

    Returns:
        {layer: A0, B0} of each layer whose weight was changed.

    Raises:
        SaveError: if a weight differs by more than a product of the adapter's rank, or none does, or one where the
            adapter is not.
    """
    _require_same_elsewhere(trained, base, changed)
    starts, left = {}, {}
    for name, change in _changes(trained, base, changed):
        if bool(change.matrix.any()):
            starts[name], left[name] = _factors(name, trained.layers[name], change)
    if not starts:
        raise SaveError(
            "the changed base has the weights of the base in every layer of the adapter: name the one from which the "
            "start was subtracted. If none was, set init_lora_weights to true in adapter_config.json"
        )
    worst = max(left, key=left.__getitem__)
    logger.info("the start is the bases' difference; at most %.1e of a weight is left over (%s)", left[worst], worst)
    if left[worst] > INEXACT:
        warnings.warn(
            f"rounding has added up to {left[worst]:.1e} of a weight (layer {worst}) to the bases' difference: the "
            "plain LoRA gives the trained function to that precision",
            stacklevel=2,
        )
    return starts


def require_start_of_changed_base(
    trained: SavedAdapter, starts: Mapping[str, Factors], base: nn.Module, changed: nn.Module
) -> None:
    """Refuses a start that is not what was subtracted from a changed base.

    Args:
        trained: the trained adapter.
        starts: {layer: A0, B0}.
        base: the original base model.
        changed: the base model that the adapter was trained on.

    Raises:
        SaveError: if they differ by more than rounding.
    """
    _require_same_elsewhere(trained, base, changed)
    for name, change in _changes(trained, base, changed):
        expected = torch.zeros_like(change.matrix)
        if name in starts:
            expected = trained.layers[name].eta * (starts[name].B.double() @ starts[name].A.double()).to(change.matrix)
        if _norm(change.matrix - expected) > change.rounding:
            raise SaveError(
                f"layer {name}: what was subtracted from the changed base is not the start in the initial adapter; "
                "they are of two runs"
            )


@dataclass(frozen=True)
class _Change:
    """W0 - W of one layer."""

    matrix: Tensor  # (d_out, d_in), float64
    size: float  # ||W||
    rounding: float  # of the matrix's norm, how much may be no part of a start


def _changes(trained: SavedAdapter, base: nn.Module, changed: nn.Module) -> Iterator[tuple[str, _Change]]:
    for name, layer in trained.layers.items():
        if not layer.is_linear:
            continue
        original, weight = _weight(base, name, "base"), _weight(changed, name, "changed base")
        shape = (layer.B.shape[0], layer.A.shape[1])
        if not original.shape == weight.shape == shape:
            raise SaveError(
                f"layer {name}: its weight is {tuple(original.shape)} in the base, {tuple(weight.shape)} in the "
                f"changed base and {shape} for the adapter; they do not belong together"
            )
        matrix, size = original.double() - weight.to(original.device).double(), _norm(weight)
        if not math.isfinite(size) or not torch.isfinite(matrix).all():
            raise SaveError(f"layer {name}: its weight has entries that are not finite")
        # two roundings to the weight's dtype, and a product that was computed in TF32
        yield name, _Change(matrix, size, torch.finfo(weight.dtype).eps * size + 1e-3 * _norm(matrix))


def _factors(name: str, layer: SavedLayer, change: _Change) -> tuple[Factors, float]:
    """A0 and B0 with eta B0 A0 = W0 - W, and what is left over ||W||; an error if that is more than rounding."""
    matrix, rank = change.matrix, layer.rank
    columns = min(rank + OVERSAMPLING, *matrix.shape)
    directions = random_directions(matrix.shape[1], columns, layer_generator(0, name), matrix.device)
    found = factor_sum([Matrix(matrix)], matrix @ directions.double(), loss_terms=0.0, iterations=2)
    U, S, Vh = found.U[:, :rank], found.S[:rank], found.Vh[:rank]
    left = _norm(matrix - (U * S) @ Vh)
    if left > change.rounding:
        raise SaveError(
            f"layer {name}: the changed base differs from the base by more than a product of rank {rank}, the "
            f"adapter's: {left / _norm(matrix):.2g} of the difference is left over. It is of another adapter, has the "
            "adapter merged into it, or the base has another dtype than in training"
        )
    half = rank // 2
    stored = -layer.eta * (layer.B[:, half:].double() @ layer.A[half:].double()).to(matrix)
    if rank % 2 == 0 and _norm(matrix - stored) <= change.rounding:
        raise SaveError(
            f"layer {name}: the adapter holds its start already, so it is converted and for the original base; it "
            "needs no changed base"
        )
    root = (S / abs(layer.eta)).sqrt()
    A, B = root[:, None] * Vh, math.copysign(1.0, layer.eta) * U * root
    if rank > len(S):  # more than the matrix has
        A, B = (F.pad(A, (0, 0, 0, rank - len(S))), F.pad(B, (0, rank - len(S))))
    return Factors(A=A.float().cpu(), B=B.float().cpu()), left / change.size if change.size else 0.0


def _require_same_elsewhere(trained: SavedAdapter, base: nn.Module, changed: nn.Module) -> None:
    """Refuses two bases that differ where the adapter is not, and where it holds nothing of its own."""
    ours = {name for name, layer in trained.layers.items() if layer.is_linear}
    saved = {key.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".") for key in trained.state}
    modules = "|".join(re.escape(str(module)) for module in trained.config.get("modules_to_save") or [])
    others = changed.state_dict()
    for name, tensor in base.state_dict().items():
        if name.removesuffix(".weight") in ours or name in saved or not isinstance(tensor, Tensor):
            continue
        if modules and re.match(rf"(.*\.)?({modules})\.", name):
            continue
        other = others.get(name)
        if other is None:
            raise SaveError(f"the changed base has no {name}: it is of another model, or is not the base model alone")
        if other.shape != tensor.shape or not torch.equal(tensor.to(other), other):
            raise SaveError(
                f"{name} is not the same in the base and the changed base, and the adapter is not on it: they are not "
                "of one model, or the weight is tied to a layer's that was changed, which no adapter can express"
            )


def _weight(model: nn.Module, name: str, which: str) -> Tensor:
    """A linear layer's weight, (d_out, d_in)."""
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise SaveError(f"the {which} has no layer {name}; the adapter is for another model") from error
    if not is_linear(module):
        raise SaveError(f"layer {name} of the {which} is a {type(module).__name__}, not a linear layer")
    if is_quantized(module):
        raise SaveError(
            f"layer {name}: the {which} is quantised, so its difference is not known exactly; load it unquantised"
        )
    weight: Tensor = module.get_parameter("weight").detach()
    return weight if isinstance(module, nn.Linear) else weight.T


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double()))
