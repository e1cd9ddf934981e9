"""A checksum of named tensors: it finds a bit that a disk or a copy has changed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def tensor_checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of names, shapes, dtypes and bytes, in the order of the names.

    Args:
        tensors: {name: tensor on the CPU}.
        text: what belongs to them.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach()
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()
