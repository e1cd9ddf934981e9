"""The start that was subtracted from an adapter's base weights, taken from another adapter's files, or its own.

    the adapter saved before training   A0 and B0 themselves
    a conversion                        the second halves of [A; A0] and [B, -B0]

Both are checked against the trained adapter: another adapter's start gives wrong weights that nothing else would show.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .adapter_kind import AUTHORS, PEFT
from .errors import SaveError
from .saved_adapter import SavedAdapter, SavedLayer
from .scheme import Factors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LARGEST_CORRELATION = 1e-2  # of rows of A0; TF32 and half precision stay below 1e-3
UNRELATED = 0.1  # cosine of A and A0 below which A has little of A0 left


def start_of_initial(trained: SavedAdapter, initial: SavedAdapter) -> dict[str, Factors]:
    """Takes the start from the adapter that was saved before training.

    Args:
        trained: the trained adapter.
        initial: the same adapter before its first step.

    Returns:
        {layer: A0, B0} of each layer whose start is not zero.

    Raises:
        SaveError: if it has other layers, shapes or scalings, or is trained itself.
    """
    where = initial.directory
    if missing := sorted(trained.layers.keys() ^ initial.layers.keys()):
        holder, other = (where, trained) if missing[0] in initial.layers else (trained.directory, initial)
        raise SaveError(f"layer {missing[0]} is in {holder} and not in {other.directory}: they are of other adapters")
    starts = {}
    for name, layer in trained.layers.items():
        first = initial.layers[name]
        if (layer.A.shape, layer.B.shape) != (first.A.shape, first.B.shape):
            hint = " (it holds its start already, if it is converted)" if layer.rank == 2 * first.rank else ""
            raise SaveError(
                f"layer {name} has rank {layer.rank} and factors {_shapes(layer)} in {trained.directory}, and rank "
                f"{first.rank} and {_shapes(first)} in {where}: that is no start of this adapter{hint}"
            )
        # the authors' first scripts save the start with lora_alpha negative, to merge it as what is subtracted
        if not math.isclose(layer.eta, abs(first.eta), rel_tol=1e-6):
            raise SaveError(
                f"layer {name} has scaling {layer.eta:g} in {trained.directory} and {first.eta:g} in {where}: they are "
                "of other adapters, or a lora_alpha, r or use_rslora was changed"
            )
        if bool(first.A.any()) and bool(first.B.any()):
            starts[name] = Factors(A=first.A, B=first.B)
    if all(_same(trained.layers[name], initial.layers[name]) for name in trained.layers):
        raise SaveError(f"{where} holds the same factors as {trained.directory}: name what was saved before training")
    _require_linear(trained, starts)
    if trained.kind.kind in (PEFT, AUTHORS):
        _require_untrained(starts, where)
    _warn_if_unrelated(trained, starts, where)
    return starts


def start_of_halves(trained: SavedAdapter) -> tuple[dict[str, SavedLayer], dict[str, Factors]]:
    """Takes a conversion apart: [A; A0] and [B, -B0].

    Args:
        trained: an adapter that PEFT or the authors' code converted.

    Returns:
        The trained layers of half the rank, and {layer: A0, B0} of each layer whose start is not zero.

    Raises:
        SaveError: if the second halves are no start of LoRA-GA, or all of it is.
    """
    layers, starts = {}, {}
    for name, layer in trained.layers.items():
        rank = layer.rank // 2
        B0 = -layer.B[:, rank:]
        layers[name] = SavedLayer(layer.A[:rank], layer.B[:, :rank], layer.alpha, layer.eta, layer.keys)
        if bool(B0.any()) and bool(layer.A[rank:].any()):
            starts[name] = Factors(A=layer.A[rank:], B=B0)
    _require_linear(trained, starts)
    looks = "it looks converted (its config says so), but"
    for name, start in starts.items():
        if _correlation(start.A) > LARGEST_CORRELATION:
            raise SaveError(
                f"{trained.directory}: {looks} the second half of its A is no start of LoRA-GA (layer {name}): its "
                "init_lora_weights was probably changed by hand. Then `loraga export` makes a plain LoRA of it with "
                "--initial or --changed-base"
            )
    if starts and all(_correlation(trained.layers[name].A) <= LARGEST_CORRELATION for name in starts):
        raise SaveError(
            f"{trained.directory}: {looks} all of it is a start of LoRA-GA that was never trained: it is what an "
            "adapter was converted with; name the converted adapter"
        )
    return layers, starts


def _require_linear(trained: SavedAdapter, starts: Iterable[str]) -> None:
    for name in starts:
        if not trained.layers[name].is_linear:
            raise SaveError(f"layer {name} is not a linear layer, and has a start; only linear layers can be converted")


def _require_untrained(starts: Mapping[str, Factors], where: object) -> None:
    """Refuses factors that training has moved: LoRA-GA starts from singular vectors."""
    for name, start in starts.items():
        if (correlation := _correlation(start.A)) > LARGEST_CORRELATION:
            raise SaveError(
                f"layer {name}: the rows of A in {where} are not orthogonal ({correlation:.2g}), so it is no start of "
                "LoRA-GA but was trained: name what was saved before the first step"
            )


def _warn_if_unrelated(trained: SavedAdapter, starts: Mapping[str, Factors], where: object) -> None:
    product = sum(float((trained.layers[name].A.double() * start.A.double()).sum()) for name, start in starts.items())
    now = math.sqrt(sum(_norm(trained.layers[name].A) ** 2 for name in starts))
    then = math.sqrt(sum(_norm(start.A) ** 2 for start in starts.values()))
    if starts and product < UNRELATED * now * then:
        warnings.warn(
            f"{trained.directory} has moved so far from the start in {where} (cosine {product / (now * then):.2f} of "
            "their A) that it may be another run's: compare the outputs with those in training",
            stacklevel=2,
        )


def _correlation(A: Tensor) -> float:
    """The largest cosine of two rows."""
    rows = A.double()
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return float((rows @ rows.T).fill_diagonal_(0).abs().max()) if len(rows) > 1 else 0.0


def _same(one: SavedLayer, other: SavedLayer) -> bool:
    return torch.equal(one.A, other.A) and torch.equal(one.B, other.B)


def _shapes(layer: SavedLayer) -> str:
    return f"{tuple(layer.A.shape)}, {tuple(layer.B.shape)}"


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double()))
