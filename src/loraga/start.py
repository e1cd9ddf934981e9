"""The start of each layer, computed before anything is written: scheme and gradient -> A0, B0 and their report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from .capture import layer_shape
from .errors import GradientError
from .gradient import LowRankGradient, layer_generator
from .layers import base_layer
from .report import FirstStep, LayerReport, first_step, product_norm
from .scheme import Factors, Scheme, Setting, Stability
from .weights import weight_norm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft.tuners.lora import LoraLayer


@dataclass(frozen=True)
class LayerStart:
    """One layer's start, and what it was computed from."""

    rank: int
    eta: float
    gradient: LowRankGradient
    factors: Factors

    @cached_property
    def first_step(self) -> FirstStep:
        """The first LoRA step against the gradient."""
        return first_step(self.gradient, self.factors, self.eta)

    def report(self, layer: LoraLayer, rounding: float) -> LayerReport:
        """The layer's line of the report.

        Args:
            layer: the layer, for the norm of its weight.
            rounding: what folding the offset into the weight lost.

        Returns:
            The line.
        """
        step, norm = self.first_step, weight_norm(layer)
        return LayerReport(
            rank=self.rank,
            eta=self.eta,
            directions=self.gradient.directions,
            coverage=self.gradient.coverage(2 * self.rank),
            cosine=step.cosine,
            step_norm=step.relative_norm,
            offset_norm=self.eta * product_norm(self.factors) / norm if norm else None,
            rounding=rounding,
        )


def compute_starts(
    layers: Mapping[str, LoraLayer],
    adapter_name: str,
    gradients: Mapping[str, LowRankGradient],
    scheme: Scheme,
    gamma: float,
    stability: Stability,
    seed: int,
) -> dict[str, LayerStart]:
    """Computes A0 and B0 of each layer.

    Args:
        layers: the adapter's layers; each has its own rank and scaling.
        adapter_name: the adapter.
        gradients: {layer: gradient}; a scheme that uses none needs none.
        scheme: how to start.
        gamma: scale.
        stability: "forward" or "backward".
        seed: of the scheme's own random choices.

    Returns:
        {layer: start}, factors in float32.

    Raises:
        GradientError: if a gradient was estimated for a smaller rank.
    """
    starts = {}
    for name, layer in layers.items():
        rank = layer.r[adapter_name]
        gradient = gradients[name] if name in gradients else _no_gradient(layer)
        setting = Setting(rank=rank, gamma=gamma, stability=stability, generator=layer_generator(seed, f"start:{name}"))
        try:
            factors = scheme.factors(gradient, setting)
        except GradientError as error:
            raise GradientError(f"layer {name}: {error}") from error
        starts[name] = LayerStart(rank, layer.scaling[adapter_name], gradient, factors)
    return starts


def _no_gradient(layer: LoraLayer) -> LowRankGradient:
    d_out, d_in = layer_shape(base_layer(layer))
    return LowRankGradient(U=torch.zeros(d_out, 0), S=torch.zeros(0), Vh=torch.zeros(0, d_in), tail=0.0, loss_terms=0.0)
