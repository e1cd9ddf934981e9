"""How a layer's gradient is summed over micro-batches: as factors, as the matrix itself, or exactly on the CPU.

All take the same two tensors of one call of the layer and give a `LowRankGradient` at the end, so that the layers of
one model can differ: a layer whose gradient is smaller than its factors holds the gradient.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from .gradient import (
    OVERSAMPLING,
    PROBES,
    SUBSPACE_ITERATIONS,
    LowRankGradient,
    Product,
    factor_matrix,
    factor_sum,
    require_finite,
    times,
)


class Accumulator(Protocol):
    """Sums one layer's gradient."""

    def add(self, inputs: Tensor, output_gradients: Tensor, weight: float) -> None:
        """Adds weight * output_gradients^T @ inputs; inputs are (tokens, d_in), output_gradients (tokens, d_out)."""
        ...

    def finish(self, loss_terms: float) -> LowRankGradient:
        """Divides the sum by the number of loss terms and gives its leading triplets."""
        ...


class FactorAccumulator:
    """Keeps k columns of factors: each call's product is merged by a range finder, then cut to k again.

    Memory is (k + PROBES) * (d_in + d_out) floats at most, whatever the number of micro-batches. What is cut away is
    estimated by independent random probes of the whole sum, which add exactly.
    """

    def __init__(self, columns: int, generator: torch.Generator, iterations: int = SUBSPACE_ITERATIONS) -> None:
        self._columns = columns
        self._generator = generator
        self._iterations = iterations
        self._sum: LowRankGradient | None = None
        self._probes: Tensor | None = None  # (d_in, PROBES)
        self._probed: Tensor | None = None  # (d_out, PROBES), the sum times the probes

    def add(self, inputs: Tensor, output_gradients: Tensor, weight: float) -> None:
        """Merges one call's product into the factors."""
        call = Product(left=weight * output_gradients.float().T, right=inputs.float())
        products = [call]
        if self._sum is not None:
            products.append(Product(left=self._sum.U * self._sum.S, right=self._sum.Vh))
        sought = self._columns + OVERSAMPLING
        found = factor_sum(products, sought, self._iterations, self._generator, loss_terms=0.0)
        self._sum = found.truncate(self._columns)
        self._probe(call)

    def _probe(self, call: Product) -> None:
        if self._probes is None:
            self._probes = torch.randn(call.right.shape[1], PROBES, generator=self._generator, dtype=torch.float32).to(
                call.right.device
            )
        probed = times([call], self._probes)
        self._probed = probed if self._probed is None else self._probed + probed

    def finish(self, loss_terms: float) -> LowRankGradient:
        """Gives the factors of the mean, with the estimated norm of what they leave out."""
        assert self._sum is not None
        assert self._probes is not None
        assert self._probed is not None
        kept = self._sum.U @ (self._sum.S[:, None] * (self._sum.Vh @ self._probes))
        tail = float(torch.linalg.matrix_norm(self._probed - kept)) / math.sqrt(PROBES)
        return replace(self._sum, S=self._sum.S / loss_terms, tail=tail / loss_terms, loss_terms=loss_terms)


class MatrixAccumulator:
    """Holds the gradient itself, on the layer's device or on the CPU, and factors it once at the end."""

    def __init__(self, columns: int, device: torch.device | None = None) -> None:
        self._columns = columns
        self._device = device
        self._sum: Tensor | None = None  # (d_out, d_in), float32

    def add(self, inputs: Tensor, output_gradients: Tensor, weight: float) -> None:
        """Adds one call's product to the matrix."""
        gradient = (weight * output_gradients.float()).T @ inputs.float()
        require_finite(gradient)
        gradient = gradient if self._device is None else gradient.to(self._device)
        self._sum = gradient if self._sum is None else self._sum.add_(gradient)

    def finish(self, loss_terms: float) -> LowRankGradient:
        """Factors the mean and frees the matrix."""
        assert self._sum is not None
        factored = factor_matrix(self._sum / loss_terms, loss_terms).truncate(self._columns)
        self._sum = None
        return factored


def holds_matrix(d_out: int, d_in: int, columns: int) -> bool:
    """Whether a layer's gradient takes no more memory than its factors, so that it is held exactly.

    Args:
        d_out: rows of the weight.
        d_in: columns of the weight.
        columns: number k of triplets the factors would hold.

    Returns:
        True where the matrix is at most as large.
    """
    return d_out * d_in <= columns * (d_out + d_in)
