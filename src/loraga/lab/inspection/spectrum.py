"""The singular values of one gradient, and how much of it a rank reaches: plain numbers, no model.

    coverage(r) = sum_{i <= 2r} s_i^2 / sum_i s_i^2      (arXiv 2407.05000, appendix B.2, Figure 5 right)

A LoRA-GA start of rank r spans 2r singular directions, r by A and r by B (Theorem 3.1), so 2r of them count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from loraga.gradient import require_finite

if TYPE_CHECKING:
    from torch import Tensor

    from loraga import LowRankGradient


@dataclass(frozen=True)
class Spectrum:
    """What is known of one gradient's singular values.

    Attributes:
        shape: (d_out, d_in) of the gradient.
        values: its first singular values in falling order; all min(d_out, d_in) of them if `is_whole`.
        squares: the sum of the squares of all of them, also of those that are not known: ||G||_F^2.
    """

    shape: tuple[int, int]
    values: tuple[float, ...]
    squares: float

    @property
    def is_whole(self) -> bool:
        """Whether every singular value is known, not just the first ones and the norm of the rest."""
        return len(self.values) == min(self.shape)

    @property
    def norm(self) -> float:
        """Frobenius norm of the gradient."""
        return math.sqrt(self.squares)

    def coverage(self, rank: int) -> float | None:
        """Share of the squared norm in the first 2 rank singular values.

        Args:
            rank: of an adapter.

        Returns:
            A number from 0 to 1, 0 for a zero gradient; None where fewer values are known.
        """
        if 2 * rank > len(self.values) and not self.is_whole:
            return None
        return self._share(math.fsum(value**2 for value in self.values[: 2 * rank]))

    def rank_for(self, share: float) -> int | None:
        """The smallest rank with at least this coverage.

        Args:
            share: from 0 to 1.

        Returns:
            The rank; None where it is larger than the known values tell, or the gradient is zero.
        """
        for count, squares in enumerate(accumulate(value**2 for value in self.values), start=1):
            if self._share(squares) >= share:
                rank = math.ceil(count / 2)
                return rank if self.coverage(rank) is not None else None
        return None

    def _share(self, squares: float) -> float:
        return min(1.0, squares / self.squares) if self.squares > 0 else 0.0


def spectrum_of_matrix(gradient: Tensor) -> Spectrum:
    """Decomposes a gradient in float64.

    Args:
        gradient: (d_out, d_in), any floating dtype.

    Returns:
        All its singular values.

    Raises:
        GradientError: if an entry is not finite.
    """
    require_finite(gradient)
    exact = gradient.double()
    squares = float(torch.linalg.vector_norm(exact)) ** 2
    d_out, d_in = gradient.shape
    return Spectrum((d_out, d_in), tuple(torch.linalg.svdvals(exact).tolist()), squares)


def spectrum_of_factors(gradient: LowRankGradient) -> Spectrum:
    """Reads what an estimated gradient knows: its k singular values, and its norm with what the factors leave out.

    Args:
        gradient: as `loraga.estimate_gradients` gives it.

    Returns:
        Its first k singular values, which are all of them if k is min(d_out, d_in).
    """
    return Spectrum(gradient.shape, tuple(gradient.S.double().tolist()), gradient.norm**2)
