"""Base weights set aside while adapters are merged into them, so that unmerging gives them back bit for bit.

PEFT subtracts what it has added, and (W + D) - D is not W. TRL merges and unmerges before each generation with vLLM, so
that the reference policy, the base, would drift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .layers import base_layer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from peft.tuners.lora import LoraLayer

PARAMETERS = ("weight", "bias")


class SetAside:
    """Copies of base parameters on the CPU, by their layers."""

    def __init__(self) -> None:
        self._copies: list[tuple[LoraLayer, Tensor, Tensor]] = []

    def keep(self, layers: Iterable[LoraLayer]) -> None:
        """Copies the parameters of layers that nothing is merged into; quantised and offloaded ones are left out.

        Args:
            layers: PEFT's layers.
        """
        for layer in layers:
            base = base_layer(layer)
            values: list[Any] = [] if layer.merged else [getattr(base, name, None) for name in PARAMETERS]
            for value in values:
                if type(value) is nn.Parameter and value.is_floating_point() and not value.is_meta:
                    self._copies.append((layer, value, value.detach().cpu().clone()))

    def give_back(self) -> None:
        """Writes the copies into the layers that nothing is merged into any more."""
        with torch.no_grad():
            for layer, value, copy in self._copies:
                if not layer.merged:
                    value.copy_(copy)
        self.forget_unmerged()

    def forget_unmerged(self) -> None:
        """Forgets the copies of layers that nothing is merged into."""
        self._copies = [kept for kept in self._copies if kept[0].merged]
