"""A gradient as factors: G = U diag(S) Vh, and the ways in which such values add.

For one linear layer and one micro-batch the gradient of the weight is G = dY^T X, with X (tokens, d_in) the layer's
input and dY (tokens, d_out) the gradient at its output. A sum of such products and of factors kept so far is never
formed: a randomised range finder (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1) asks only
for its product with thin matrices.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .errors import GradientError

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS_PER_RANK = 4  # at 4 columns a rank the residual is within 1 % of the optimum on real models
OVERSAMPLING = 8  # random directions beyond the columns kept: how a merge finds what is new
PROBES = 8  # random directions that estimate the norm of what the factors leave out


@dataclass(frozen=True)
class LowRankGradient:
    """The mean gradient of one linear layer's weight, by its leading singular triplets.

    Attributes:
        U: left singular vectors, (d_out, k), float32.
        S: singular values in falling order, (k,), float32.
        Vh: right singular vectors, (k, d_in), float32; the largest entry of each row is positive.
        tail: Frobenius norm of what the factors leave out; 0 where they are the whole gradient.
        loss_terms: number of loss terms that the gradient is the mean over.
    """

    U: Tensor  # (d_out, k)
    S: Tensor  # (k,)
    Vh: Tensor  # (k, d_in)
    tail: float
    loss_terms: float

    @property
    def columns(self) -> int:
        """Number k of singular triplets held."""
        return self.S.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d_out, d_in) of the layer's weight."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def norm(self) -> float:
        """Frobenius norm of the gradient, what the factors leave out included."""
        return math.hypot(_norm(self.S), self.tail)

    @property
    def directions(self) -> int:
        """Number of singular values above float32 rounding, counted as `torch.linalg.matrix_rank` does."""
        if self.columns == 0:  # the gradient of a scheme that uses none
            return 0
        return _above_rounding(self.S, self.shape)

    def coverage(self, columns: int) -> float:
        """Share of the gradient's squared Frobenius norm in its first singular values.

        Args:
            columns: how many singular values, 2r for a LoRA-GA start of rank r.

        Returns:
            A number from 0 to 1; 0 for a zero gradient.
        """
        if self.norm == 0:
            return 0.0
        return (_norm(self.S[:columns]) / self.norm) ** 2

    def truncate(self, columns: int) -> LowRankGradient:
        """Keeps the first singular triplets and adds the norm of the others to the tail.

        Args:
            columns: how many to keep; more than there are keeps all.

        Returns:
            The truncated gradient.
        """
        tail = math.hypot(self.tail, _norm(self.S[columns:]))
        return replace(self, U=self.U[:, :columns], S=self.S[:columns], Vh=self.Vh[:columns], tail=tail)

    def merge(self, other: LowRankGradient) -> LowRankGradient:
        """Merges with the gradient of other loss terms of the same layer, each counting by its loss terms.

        The factors are merged exactly and cut to the larger k of the two; the tails, which belong to different
        examples, are added in quadrature. Hence merging m gradients is commutative and associative to float32
        rounding where k holds their sum. Where it does not, each order is within sqrt(m - 1) times its own tail of
        the mean of what was held, in Frobenius norm, and two orders differ by the sum of these bounds at most.

        Args:
            other: gradient of the same layer.

        Returns:
            The mean over the loss terms of both.

        Raises:
            GradientError: if the shapes differ.
        """
        if self.shape != other.shape:
            raise GradientError(f"cannot merge gradients of shapes {self.shape} and {other.shape}")
        total = self.loss_terms + other.loss_terms
        shares = (self.loss_terms / total, other.loss_terms / total)
        left = torch.cat([self.U * (shares[0] * self.S), other.U * (shares[1] * other.S)], dim=1)
        right = torch.cat([self.Vh, other.Vh], dim=0)
        merged = factor_product(left, right, total)
        tail = math.hypot(shares[0] * self.tail, shares[1] * other.tail)
        return replace(merged, tail=tail).truncate(max(self.columns, other.columns))

    def to(self, device: torch.device | str) -> LowRankGradient:
        """Copies the factors to a device.

        Args:
            device: where to.

        Returns:
            The gradient there.
        """
        return replace(self, U=self.U.to(device), S=self.S.to(device), Vh=self.Vh.to(device))


def factor_matrix(gradient: Tensor, loss_terms: float) -> LowRankGradient:
    """Factors a gradient by a full singular value decomposition (line 9 of the paper's Algorithm 1).

    Args:
        gradient: (d_out, d_in), any floating dtype.
        loss_terms: number of loss terms that it is the mean over.

    Returns:
        All its min(d_out, d_in) singular triplets.

    Raises:
        GradientError: if an entry is not finite.
    """
    require_finite(gradient)
    d_out, d_in = gradient.shape
    if d_out < d_in:  # LAPACK decomposes a tall matrix in half the time of a wide one
        V, S, Uh = torch.linalg.svd(gradient.float().T, full_matrices=False)
        return _with_fixed_signs(Uh.T, S, V.T, loss_terms)
    U, S, Vh = torch.linalg.svd(gradient.float(), full_matrices=False)
    return _with_fixed_signs(U, S, Vh, loss_terms)


def factor_product(left: Tensor, right: Tensor, loss_terms: float) -> LowRankGradient:
    """Factors left @ right exactly, without forming it.

    Args:
        left: (d_out, m).
        right: (m, d_in).
        loss_terms: number of loss terms that the product is the mean over.

    Returns:
        All its min(d_out, m, d_in) singular triplets.

    Raises:
        GradientError: if an entry is not finite.
    """
    require_finite(left)
    require_finite(right)
    left_basis, left_core = torch.linalg.qr(left)  # (d_out, p), (p, m)
    right_basis, right_core = torch.linalg.qr(right.T)  # (d_in, q), (q, m)
    U, S, Vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return _with_fixed_signs(left_basis @ U, S, Vh @ right_basis.T, loss_terms)


def factor_projection(projected: Product, loss_terms: float) -> LowRankGradient:
    """Factors what `project_sum` gave, whose right factor has orthonormal rows already.

    Args:
        projected: the projection, (d_out, w) times (w, d_in); its scale is 1.
        loss_terms: number of loss terms that it is the mean over.

    Returns:
        All its w singular triplets.
    """
    basis, core = torch.linalg.qr(projected.left)  # (d_out, w), (w, w)
    U, S, Vh = torch.linalg.svd(core, full_matrices=False)
    return _with_fixed_signs(basis @ U, S, Vh @ projected.right, loss_terms)


class Summand(Protocol):
    """One (d_out, d_in) matrix of a sum, known by its products with thin matrices."""

    def times(self, matrix: Tensor, plus: Tensor | None = None) -> Tensor:
        """Multiplies by (d_in, m) and gives (d_out, m), added to `plus` in place where that is given."""
        ...

    def transpose_times(self, matrix: Tensor, plus: Tensor | None = None) -> Tensor:
        """Multiplies the transpose by (d_out, m) and gives (d_in, m), added to `plus` in place where that is given."""
        ...


@dataclass(frozen=True)
class Product:
    """scale * left @ right, in float32, never formed."""

    left: Tensor  # (d_out, m)
    right: Tensor  # (m, d_in)
    scale: float = 1.0

    def times(self, matrix: Tensor, plus: Tensor | None = None) -> Tensor:
        """Multiplies by (d_in, m) and gives (d_out, m), added to `plus` in place where that is given."""
        return _product(self.left, self.right @ matrix, self.scale, plus)

    def transpose_times(self, matrix: Tensor, plus: Tensor | None = None) -> Tensor:
        """Multiplies the transpose by (d_out, m) and gives (d_in, m), added to `plus` in place where that is given."""
        return _product(self.right.T, self.left.T @ matrix, self.scale, plus)


@dataclass(frozen=True)
class Matrix:
    """A (d_out, d_in) matrix that is at hand."""

    values: Tensor

    def times(self, matrix: Tensor, plus: Tensor | None = None) -> Tensor:
        """Multiplies by (d_in, m) and gives (d_out, m), added to `plus` in place where that is given."""
        return _product(self.values, matrix, 1.0, plus)

    def transpose_times(self, matrix: Tensor, plus: Tensor | None = None) -> Tensor:
        """Multiplies the transpose by (d_out, m) and gives (d_in, m), added to `plus` in place where that is given."""
        return _product(self.values.T, matrix, 1.0, plus)


def factor_sum(summands: Sequence[Summand], sketch: Tensor, loss_terms: float, iterations: int = 0) -> LowRankGradient:
    """Finds the leading singular triplets of a sum from its product with a few directions.

    Args:
        summands: matrices of equal shape (d_out, d_in); their sum is never formed.
        sketch: the sum times m directions, (d_out, m).
        loss_terms: number of loss terms that the sum is the mean over.
        iterations: subspace iterations, as for `project_sum`.

    Returns:
        min(m, d_out, d_in) triplets, with tail 0: the caller knows better what is left out.

    Raises:
        GradientError: if the sum is not finite.
    """
    return factor_projection(project_sum(summands, sketch, iterations), loss_terms)


def project_sum(summands: Sequence[Summand], sketch: Tensor, iterations: int = 0) -> Product:
    """Projects a sum onto an orthonormal right basis that a range finder turns towards its leading singular vectors.

    The sketch spans a left basis; the transpose of the sum times that spans the right basis V; the projection is
    (sum V) V^T. Each of the products is a power step. Nothing is decomposed, so that projections can follow each other.

    Args:
        summands: matrices of equal shape (d_out, d_in); their sum is never formed.
        sketch: the sum times m directions, (d_out, m): random ones, or right vectors found before.
        iterations: subspace iterations before the right basis is taken; each costs two more products.

    Returns:
        left = sum V, (d_out, w), and right = V^T with orthonormal rows, (w, d_in), for w = min(m, d_out, d_in).

    Raises:
        GradientError: if the sum is not finite.
    """
    basis = _orthonormal(sketch)  # (d_out, w)
    for _ in range(iterations):
        basis = _orthonormal(times(summands, _orthonormal(transpose_times(summands, basis))))
    right_basis = _orthonormal(transpose_times(summands, basis))  # (d_in, w)
    left = times(summands, right_basis)  # (d_out, w)
    require_finite(left)  # a NaN or an infinity anywhere in a summand reaches every product with it
    return Product(left, right_basis.T)


def leading_directions(projected: Product, count: int) -> Tensor:
    """Gives the leading right singular vectors of a projection whose singular values are above float32 rounding.

    Args:
        projected: what `project_sum` gave, (d_out, w) times (w, d_in) with orthonormal rows.
        count: how many to give at most.

    Returns:
        The vectors as columns, (d_in, m), m <= count.
    """
    left = projected.left.double()  # squaring the singular values in float32 would lose the small ones
    squares, rotation = torch.linalg.eigh(left.T @ left)  # rising
    shape = (projected.left.shape[0], projected.right.shape[1])
    count = min(count, _above_rounding(squares.clamp_min(0).sqrt(), shape))
    return projected.right.T @ rotation.flip(1)[:, :count].float()


def times(summands: Sequence[Summand], matrix: Tensor) -> Tensor:
    """Multiplies a sum by a matrix.

    Args:
        summands: the matrices, (d_out, d_in) each.
        matrix: (d_in, m).

    Returns:
        The product, (d_out, m).
    """
    total = summands[0].times(matrix)
    for summand in summands[1:]:
        total = summand.times(matrix, total)
    return total


def transpose_times(summands: Sequence[Summand], matrix: Tensor) -> Tensor:
    """Multiplies the transpose of a sum by a matrix.

    Args:
        summands: the matrices, (d_out, d_in) each.
        matrix: (d_out, m).

    Returns:
        The product, (d_in, m).
    """
    total = summands[0].transpose_times(matrix)
    for summand in summands[1:]:
        total = summand.transpose_times(matrix, total)
    return total


def layer_generator(seed: int, layer: str) -> torch.Generator:
    """Makes a layer's private random source, so that neither other layers nor the caller's random state matter.

    Args:
        seed: the user's seed.
        layer: the layer's name.

    Returns:
        A generator on the CPU, so that every device draws the same numbers.
    """
    digest = hashlib.sha256(f"{seed}:{layer}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def random_directions(d_in: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draws independent standard normal vectors.

    Args:
        d_in: length of each.
        count: how many.
        generator: a source on the CPU, so that every device gets the same numbers.
        device: where the vectors are wanted.

    Returns:
        The vectors as columns, (d_in, count), float32.
    """
    return torch.randn(d_in, count, generator=generator, dtype=torch.float32).to(device)


def require_finite(values: Tensor) -> None:
    """Refuses values that are not finite.

    Args:
        values: any tensor.

    Raises:
        GradientError: if an entry is NaN or infinite.
    """
    # finite values may overflow in their sum, so that only a second look tells
    if not math.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise GradientError("the gradient has entries that are not finite")


def _above_rounding(values: Tensor, shape: tuple[int, int]) -> int:
    return int((values > values.max() * max(shape) * torch.finfo(torch.float32).eps).sum())


def _product(left: Tensor, right: Tensor, scale: float, plus: Tensor | None) -> Tensor:
    if plus is not None:
        return plus.addmm_(left, right, alpha=scale)
    product = left @ right
    return product if scale == 1 else product.mul_(scale)


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.cpu(), dtype=torch.float64))  # a square overflows float32 at 2e19


def _orthonormal(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix).Q


def _with_fixed_signs(U: Tensor, S: Tensor, Vh: Tensor, loss_terms: float) -> LowRankGradient:
    largest = Vh.gather(1, Vh.abs().argmax(dim=1, keepdim=True))  # (k, 1)
    signs = torch.where(largest < 0, -1.0, 1.0)
    return LowRankGradient(
        U=(U * signs.T).contiguous(),
        S=S,
        Vh=(Vh * signs).contiguous(),
        tail=0.0,
        loss_terms=float(loss_terms),
    )
