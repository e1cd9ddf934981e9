"""Base weights set aside while adapters are merged into them, so that unmerging gives them back bit for bit.

PEFT subtracts what it has added, and (W + D) - D is not W. TRL merges and unmerges before each generation with vLLM, so
that the reference policy, the base, would drift. A bitsandbytes 4-bit weight PEFT replaces by another one in each merge
and each unmerge, rounded anew; there the original itself waits, packed as it is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .layers import base_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from peft.tuners.lora import LoraLayer

PARAMETERS = ("weight", "bias")
FOUR_BIT = "Params4bit"  # bitsandbytes'


class SetAside:
    """How the base parameters of layers come back, by their layers: copies on the CPU, or 4-bit originals."""

    def __init__(self) -> None:
        self._returns: list[tuple[LoraLayer, Callable[[], object]]] = []

    def keep(self, layers: Iterable[LoraLayer]) -> None:
        """Keeps the parameters of layers that nothing is merged into; offloaded and 8-bit ones are left out.

        Args:
            layers: PEFT's layers.
        """
        for layer in layers:
            base = base_layer(layer)
            values: dict[str, Any] = {} if layer.merged else {name: getattr(base, name, None) for name in PARAMETERS}
            for name, value in values.items():
                if type(value).__name__ == FOUR_BIT:
                    self._returns.append((layer, partial(setattr, base, name, value)))
                elif type(value) is nn.Parameter and value.is_floating_point() and not value.is_meta:
                    self._returns.append((layer, partial(_write_back, value, value.detach().cpu().clone())))

    def give_back(self) -> None:
        """Gives the layers that nothing is merged into any more what was kept of them."""
        for layer, give_back in self._returns:
            if not layer.merged:
                give_back()
        self.forget_unmerged()

    def forget_unmerged(self) -> None:
        """Forgets what was kept of layers that nothing is merged into."""
        self._returns = [kept for kept in self._returns if kept[0].merged]


def _write_back(value: Tensor, copy: Tensor) -> None:
    with torch.no_grad():
        value.copy_(copy)
