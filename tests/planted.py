"""Gradients with a known singular value decomposition, and micro-batches whose products sum to them.

A planted gradient is U diag(S) Vh of full rank with distinct, falling singular values, all in float64; micro-batches
are pairs (X, dY) of one linear layer's inputs and output gradients, so that the layer's gradient is the sum of dY^T X.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Planted:
    """G = U diag(S) Vh in float64."""

    U: Tensor  # (d_out, n)
    S: Tensor  # (n,)
    Vh: Tensor  # (n, d_in)

    @property
    def matrix(self) -> Tensor:
        return self.U @ (self.S[:, None] * self.Vh)  # (d_out, d_in)


def planted(
    d_out: int, d_in: int, *, seed: int = 0, power: float = 1.0, values: Tensor | None = None, scale: float = 1.0
) -> Planted:
    """A gradient with the i-th singular value scale / i^power, or with the singular values given."""
    generator = torch.Generator().manual_seed(seed)
    count = min(d_out, d_in) if values is None else len(values)
    S = torch.arange(1, count + 1, dtype=torch.float64) ** -power if values is None else values.double()
    U, V = orthonormal(d_out, count, generator), orthonormal(d_in, count, generator)
    return Planted(U=U, S=scale * S, Vh=V.T.contiguous())


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal columns, (rows, columns), float64."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def micro_batches(
    gradient: Planted,
    count: int,
    *,
    tokens: int,
    seed: int = 0,
    noise: float = 0.0,
    power: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> list[tuple[Tensor, Tensor]]:
    """Micro-batches (X, dY) whose products sum to the gradient, each mixing all its directions.

    Args:
        gradient: what they sum to.
        count: how many.
        tokens: rows of each; count * tokens is at least the gradient's number of singular values.
        seed: of the mixing and the noise.
        noise: Frobenius norm of what each micro-batch adds of its own, over its share ||G|| / count; the noise of
            each has bases of its own, a spectrum that falls in the same way, and does not cancel.
        power: how the noise's singular values fall.
        dtype: of the tensors, which the sum is then rounded to.

    Returns:
        Pairs of (tokens', d_in) and (tokens', d_out), with tokens' = tokens, and as many again with noise.
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = orthonormal(count * tokens, len(gradient.S), generator)  # dY^T X = U S mixing^T mixing Vh
    inputs = (mixing @ gradient.Vh).split(tokens)
    output_gradients = (mixing @ (gradient.U * gradient.S).T).split(tokens)
    batches = []
    for X, dY in zip(inputs, output_gradients, strict=True):
        if noise:
            own = planted(dY.shape[1], X.shape[1], seed=int(torch.randint(2**31, (), generator=generator)), power=power)
            S = own.S[:tokens] * (noise * gradient.S.norm() / count / own.S[:tokens].norm())
            X = torch.cat([X, own.Vh[:tokens]])
            dY = torch.cat([dY, (own.U[:, :tokens] * S).T])
        batches.append((X.to(dtype), dY.to(dtype)))
    return batches


def dense_sum(batches: list[tuple[Tensor, Tensor]], weights: list[float] | None = None) -> Tensor:
    """The sum of weight * dY^T X in float64, (d_out, d_in)."""
    weights = weights or [1.0] * len(batches)
    return torch.stack([w * dY.double().T @ X.double() for (X, dY), w in zip(batches, weights, strict=True)]).sum(0)


def reference_svd(matrix: Tensor) -> Planted:
    """The reference: torch's own decomposition in float64."""
    return Planted(*torch.linalg.svd(matrix.double(), full_matrices=False))


def tail_norm(S: Tensor, kept: int) -> float:
    """The Eckart-Young optimum: Frobenius norm of all singular values but the first ones."""
    return float(S.double()[kept:].norm())


def projector(basis: Tensor) -> Tensor:
    """Orthogonal projector onto the span of orthonormal columns, float64."""
    return basis.double() @ basis.double().T


def first_step_operator(matrix: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """G A^T A + B B^T G in float64: the direction of the first step for factors A and B."""
    G, A, B = matrix.double(), A.double(), B.double()
    return G @ A.T @ A + B @ (B.T @ G)
