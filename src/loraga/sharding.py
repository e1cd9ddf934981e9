"""Tensors of which each process of a job holds a part (FSDP2's DTensor), read and written as wholes.

All processes must ask for the same tensors in the same order: each answer is put together from all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether this process holds a part of a tensor only."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor: itself, or what all processes hold of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def write_whole(target: Tensor, value: Tensor) -> None:
    """Writes a whole tensor into one of which this process may hold a part, in place.

    Args:
        target: what is written into, of the value's shape.
        value: the same on every process.
    """
    if isinstance(target, DTensor):
        value = value.to(target.to_local())  # dtype and device
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    with torch.no_grad():
        target.copy_(value)
