"""Schemes: from singular vectors of the gradient to the factors A0 and B0 that an adapter starts with.

Each scheme is one pure function and one line in `SCHEMES`, with the scaling eta that its derivation assumes. The
singular values enter none of them (Theorem 3.1), so a start does not depend on the loss's magnitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .errors import GradientError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .gradient import LowRankGradient

Stability = Literal["forward", "backward"]


@dataclass(frozen=True)
class Factors:
    """Factors of one layer's adapter: y = W x + eta * B A x."""

    A: Tensor  # (rank, d_in), float32
    B: Tensor  # (d_out, rank), float32


@dataclass(frozen=True)
class Setting:
    """What a scheme may use besides the gradient.

    Attributes:
        rank: columns of B and rows of A.
        gamma: scale; ||eta B A|| falls as 1 / gamma.
        stability: which second moment stays independent of the sizes, the adapter's output ("forward", the paper's
            choice) or the gradient at its input ("backward").
        generator: the layer's private random source, on the CPU.
    """

    rank: int
    gamma: float
    stability: Stability
    generator: torch.Generator


def lora_ga(gradient: LowRankGradient, setting: Setting) -> Factors:
    """LoRA-GA's start for one layer (arXiv 2407.05000, Theorem 3.1, Theorem 3.2 and section 3.4).

    Args:
        gradient: of the layer's weight, with 2 * rank columns unless the layer has fewer.
        setting: rank, gamma and stability.

    Returns:
        A (rank, d_in), the first right singular vectors, and B (d_out, rank), the next left ones, at
        d_out^(1/4) / sqrt(gamma), or d_in^(1/4) / sqrt(gamma) for backward stability.

    Raises:
        GradientError: if the gradient was estimated for a smaller rank.
    """
    return _singular_vectors(gradient, setting, stable_scale(gradient.shape, setting))


def gradient_directions(gradient: LowRankGradient, setting: Setting) -> Factors:
    """Table 3's +GA: singular vectors of the gradient at unit scale.

    Args:
        gradient: of the layer's weight, with 2 * rank columns unless the layer has fewer.
        setting: the rank.

    Returns:
        A (rank, d_in) and B (d_out, rank) with orthonormal rows and columns, but for missing ones.

    Raises:
        GradientError: if the gradient was estimated for a smaller rank.
    """
    return _singular_vectors(gradient, setting, scale=1.0)


def _singular_vectors(gradient: LowRankGradient, setting: Setting, scale: float) -> Factors:
    """Scaled right vectors for A and the left ones after them for B.

    Where there are fewer than 2 * rank singular directions, A takes the first right vectors and B the left ones that
    remain; B's missing columns are zero and A's missing rows are drawn as in plain LoRA, so that nothing is dead.
    """
    rank, directions = setting.rank, gradient.directions
    require_columns(gradient, rank)
    d_out, d_in = gradient.shape
    rows, columns = min(rank, directions), max(0, min(rank, directions - rank))
    B = torch.zeros(d_out, rank, dtype=torch.float32, device=gradient.U.device)
    B[:, :columns] = scale * gradient.U[:, rank : rank + columns]
    A = torch.empty(rank, d_in, dtype=torch.float32)
    A.uniform_(-1 / math.sqrt(d_in), 1 / math.sqrt(d_in), generator=setting.generator)  # PEFT's Kaiming start
    A = A.to(gradient.Vh.device)
    A[:rows] = scale * gradient.Vh[:rows]
    return Factors(A=A, B=B)


def gaussian(gradient: LowRankGradient, setting: Setting) -> Factors:
    """Table 3's Gaussian: A ~ N(0, 1 / d_out) and B ~ N(0, 1 / d_in), as printed.

    Args:
        gradient: of the layer's weight; its shape alone is used.
        setting: rank and generator.

    Returns:
        A (rank, d_in) and B (d_out, rank).
    """
    d_out, d_in = gradient.shape
    A = torch.randn(setting.rank, d_in, generator=setting.generator, dtype=torch.float32) / math.sqrt(d_out)
    B = torch.randn(d_out, setting.rank, generator=setting.generator, dtype=torch.float32) / math.sqrt(d_in)
    return Factors(A=A.to(gradient.U.device), B=B.to(gradient.U.device))


def stable_output(gradient: LowRankGradient, setting: Setting) -> Factors:
    """Table 3's +SO: the Gaussian factors at LoRA-GA's scale.

    Args:
        gradient: of the layer's weight; its shape alone is used.
        setting: rank, gamma, stability and generator.

    Returns:
        A (rank, d_in) and B (d_out, rank).
    """
    unit = gaussian(gradient, setting)
    scale = stable_scale(gradient.shape, setting)
    return Factors(A=scale * unit.A, B=scale * unit.B)


def stable_scale(shape: tuple[int, int], setting: Setting) -> float:
    """Scale of each factor that keeps Theorem 3.2's second moment: zeta = alpha^2 / gamma * sqrt(d / r^2).

    Args:
        shape: (d_out, d_in) of the layer.
        setting: gamma, and the stability, which chooses d.

    Returns:
        d^(1/4) / sqrt(gamma), with d = d_out for forward and d_in for backward stability.
    """
    d_out, d_in = shape
    return float((d_out if setting.stability == "forward" else d_in) ** 0.25 / math.sqrt(setting.gamma))


def require_columns(gradient: LowRankGradient, rank: int) -> None:
    """Refuses a gradient with fewer columns than 2 * rank, unless the layer itself is that narrow.

    Args:
        gradient: of the layer's weight.
        rank: of the adapter.

    Raises:
        GradientError: if too few triplets were kept.
    """
    if gradient.columns < min(2 * rank, *gradient.shape):
        raise GradientError(
            f"the gradient has {gradient.columns} columns and rank {rank} needs {2 * rank}; "
            f"estimate it with rank={rank} or more"
        )


def scaling_by_rank(alpha: float, rank: int) -> float:
    """LoRA's scaling, eta = alpha / r (PEFT's use_rslora=False)."""
    return alpha / rank


def scaling_by_root_of_rank(alpha: float, rank: int) -> float:
    """Scaling that Theorem 3.2 asks for, eta = alpha / sqrt(r) (PEFT's use_rslora=True)."""
    return alpha / math.sqrt(rank)


@dataclass(frozen=True)
class Scheme:
    """One way to start an adapter: its factors, and the scaling that goes with them."""

    factors: Callable[[LowRankGradient, Setting], Factors]
    eta: Callable[[float, int], float]
    uses_gradient: bool = True
    uses_gamma: bool = True


SCHEMES: dict[str, Scheme] = {
    "lora_ga": Scheme(lora_ga, scaling_by_root_of_rank),
    "gaussian": Scheme(gaussian, scaling_by_rank, uses_gradient=False, uses_gamma=False),
    "stable_output": Scheme(stable_output, scaling_by_root_of_rank, uses_gradient=False),
    "gradient": Scheme(gradient_directions, scaling_by_rank, uses_gamma=False),
}
