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
    LowRankGradient,
    Matrix,
    Product,
    factor_matrix,
    factor_projection,
    factor_sum,
    leading_directions,
    project_sum,
    random_directions,
    require_finite,
)

# from 64 columns on, merging into the factors of a layer of up to 4 MiB takes longer than forming its gradient
NARROW_ENTRIES = 2**20
MANY_COLUMNS = 64


class Accumulator(Protocol):
    """Sums one layer's gradient."""

    def add(self, inputs: Tensor, output_gradients: Tensor, weight: float) -> None:
        """Adds weight * output_gradients^T @ inputs; inputs are (tokens, d_in), output_gradients (tokens, d_out)."""
        ...

    def finish(self, loss_terms: float) -> LowRankGradient:
        """Divides the sum by the number of loss terms and gives its leading triplets."""
        ...


class FactorAccumulator:
    """Keeps k + OVERSAMPLING columns of factors, into which each call's product is merged by a range finder.

    The range finder begins at the k leading right vectors kept so far and a few random directions, so that a merge
    refines what the merges before it found and sees what is new. Memory is (k + OVERSAMPLING + PROBES) * (d_in + d_out)
    floats, whatever the number of micro-batches. What is left out is estimated by independent random probes of the
    whole sum, which add exactly.
    """

    def __init__(self, columns: int, generator: torch.Generator, iterations: int = 0) -> None:
        self._columns = columns
        self._generator = generator
        self._iterations = iterations
        self._kept: Product | None = None
        self._probes: Tensor | None = None  # (d_in, PROBES)
        self._probed: Tensor | None = None  # (d_out, PROBES), the sum times the probes

    def add(self, inputs: Tensor, output_gradients: Tensor, weight: float) -> None:
        """Merges one call's product into the factors."""
        call = Product(output_gradients.float().T, inputs.float(), weight)
        if self._probes is None:
            self._probes = self._random(call, PROBES)
        directions = torch.cat([*self._directions(call), self._probes], dim=1)
        products = call.times(directions)
        sketch, probed = products[:, :-PROBES], products[:, -PROBES:]
        summands = [call]
        if self._kept is not None:
            sketch = self._kept.times(directions[:, :-PROBES], sketch)
            summands = [self._kept, call]
        found = project_sum(summands, sketch, self._iterations)
        if self._kept is None or self._probed is None:
            self._kept, self._probed = found, probed.clone()
        else:  # in place: factors allocated anew among a pass's activations leave the heap full of holes
            self._kept.left.copy_(found.left)
            self._kept.right.copy_(found.right)
            self._probed.add_(probed)

    def _directions(self, call: Product) -> tuple[Tensor, ...]:
        """The leading right vectors kept so far, and random ones up to k + OVERSAMPLING."""
        sought = self._columns + OVERSAMPLING
        if self._kept is None:
            return (self._random(call, sought),)
        known = leading_directions(self._kept, self._columns)
        return known, self._random(call, sought - known.shape[1])

    def _random(self, call: Product, count: int) -> Tensor:
        return random_directions(call.right.shape[1], count, self._generator, call.right.device)

    def finish(self, loss_terms: float) -> LowRankGradient:
        """Gives the factors of the mean, with the estimated norm of what they leave out."""
        assert self._kept is not None
        assert self._probes is not None
        assert self._probed is not None
        mean = replace(self._kept, left=self._kept.left / loss_terms)
        found = factor_projection(mean, loss_terms).truncate(self._columns)
        seen = found.U @ (found.S[:, None] * (found.Vh @ self._probes))
        left_out = self._probed / loss_terms - seen
        return replace(found, tail=float(torch.linalg.matrix_norm(left_out, dtype=torch.float64)) / math.sqrt(PROBES))


class MatrixAccumulator:
    """Holds the gradient itself, on the layer's device or on the CPU, and factors it once at the end.

    With a generator the leading triplets are sought by a range finder where that is the shorter way; without one the
    matrix is decomposed in full, as the paper does.
    """

    def __init__(
        self, columns: int, device: torch.device | None = None, generator: torch.Generator | None = None
    ) -> None:
        self._columns = columns
        self._device = device
        self._generator = generator
        self._sum: Tensor | None = None  # (d_out, d_in), float32

    def add(self, inputs: Tensor, output_gradients: Tensor, weight: float) -> None:
        """Adds one call's product to the matrix."""
        if self._sum is not None and self._device is None:
            self._sum.addmm_(output_gradients.float().T, inputs.float(), alpha=weight)
            require_finite(self._sum)
            return
        gradient = (weight * output_gradients.float()).T @ inputs.float()
        require_finite(gradient)
        gradient = gradient if self._device is None else gradient.to(self._device)
        self._sum = gradient if self._sum is None else self._sum.add_(gradient)

    def finish(self, loss_terms: float) -> LowRankGradient:
        """Factors the mean and frees the matrix."""
        assert self._sum is not None
        mean, self._sum = self._sum.div_(loss_terms), None
        sought = self._columns + OVERSAMPLING
        if self._generator is None or 2 * sought >= min(mean.shape):
            return factor_matrix(mean, loss_terms).truncate(self._columns)
        directions = random_directions(mean.shape[1], sought, self._generator, mean.device)
        found = factor_sum([Matrix(mean)], mean @ directions, loss_terms).truncate(self._columns)
        left_out = mean.addmm_(found.U * found.S, found.Vh, alpha=-1)  # the difference of squared norms would cancel
        return replace(found, tail=float(torch.linalg.vector_norm(left_out, dtype=torch.float64)))


def holds_matrix(d_out: int, d_in: int, columns: int) -> bool:
    """Whether a layer's gradient is held itself: where it is no larger than its factors, or narrow and soon formed.

    Args:
        d_out: rows of the weight.
        d_in: columns of the weight.
        columns: number k of triplets the factors would hold.

    Returns:
        True where the matrix has at most as many entries as k triplets, or k is at least MANY_COLUMNS and the matrix
        has at most NARROW_ENTRIES entries.
    """
    entries = d_out * d_in
    return entries <= columns * (d_out + d_in) or (columns >= MANY_COLUMNS and entries <= NARROW_ENTRIES)
