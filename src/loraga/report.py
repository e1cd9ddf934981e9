"""What an initialisation did: how much of the gradient the start covers, and how far its first step goes along it."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from .residual_record import MIRRORED

if TYPE_CHECKING:
    from .gradient import LowRankGradient
    from .scheme import Factors

WORST_LAYERS = 10


@dataclass(frozen=True)
class LayerReport:
    """One layer's start.

    Attributes:
        rank: of the adapter.
        eta: the adapter's scaling.
        directions: number of singular directions found, of the columns kept.
        coverage: share of ||G||_F^2 in the first 2r singular values, 0 to 1.
        cosine: of the first LoRA step (SGD, small rate) with the gradient step, over all of G; None for a zero G.
        step_norm: ||eta^2 (G A^T A + B B^T G)||_F / ||G||_F, the factor zeta by which the step is longer; None for a
            zero G.
        offset_norm: ||eta B0 A0||_F / ||W||_F; None where W cannot be read.
        rounding: ||W' + eta B0 A0 - W||_F / ||eta B0 A0||_F that folding into W lost; 0 unless offset="weights".
    """

    rank: int
    eta: float
    directions: int
    coverage: float
    cosine: float | None
    step_norm: float | None
    offset_norm: float | None
    rounding: float = 0.0


@dataclass(frozen=True)
class Report:
    """What `initialize` did.

    Attributes:
        scheme: the scheme's name.
        offset: how the function is kept: "adapter", "none" or "weights"; "mirrored" for an adapter whose halves cancel,
            whose first step is the one told here at half the learning rate.
        gamma: the scale used.
        estimator: "streaming", "exact", or "given" for gradients that were passed in.
        loss_terms: number of loss terms that the gradient is the mean over.
        seconds: wall time of the whole call.
        function_change: relative change of the model's outputs on the first batch; None if it was not looked at.
        layers: {layer: its start}.
        skipped: {layer: why it stayed as plain LoRA}.
        coverage: share of the squared norm of all layers' gradients in their first 2r singular values.
        cosine: of the first LoRA step of all layers together with the gradient step.
    """

    scheme: str
    offset: str
    gamma: float
    estimator: str
    loss_terms: float
    seconds: float
    function_change: float | None
    layers: dict[str, LayerReport]
    skipped: dict[str, str]
    coverage: float
    cosine: float | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        """A table of the worst layers by cosine, and the totals."""
        ranked = sorted(self.layers.items(), key=lambda item: (item[1].cosine is not None, item[1].cosine))
        width = max((len(name) for name, _ in ranked[:WORST_LAYERS]), default=5)
        lines = [f"{'layer':<{width}}  rank  coverage  cosine  step/G   offset/W"]
        lines += [_row(name, layer, width) for name, layer in ranked[:WORST_LAYERS]]
        if len(ranked) > WORST_LAYERS:
            lines.append(f"... and {len(ranked) - WORST_LAYERS} layers with a higher cosine")
        return "\n".join([*lines, *self._totals()])

    def summary(self) -> str:
        """What was done, in one line."""
        return (
            f"{self.scheme}, offset={self.offset}, gamma={self.gamma:g}: {len(self.layers)} layers from "
            f"{self.loss_terms:g} loss terms in {self.seconds:.1f} s ({self.estimator}), {len(self.skipped)} skipped"
        )

    def _totals(self) -> list[str]:
        offsets = [layer.offset_norm for layer in self.layers.values() if layer.offset_norm is not None]
        lines = [
            self.summary(),
            f"all layers: coverage {_number(self.coverage)}, cosine {_number(self.cosine)}",
        ]
        if offsets:
            lines.append(f"offset/W: median {statistics.median(offsets):.2g}, largest {max(offsets):.2g}")
        if self.function_change is not None:
            lines.append(f"change of the model's outputs on the first batch: {self.function_change:.2g}")
        if self.offset != "none":
            ranks = sorted({2 * layer.rank for layer in self.layers.values()})
            trained = "all of it trained" if self.offset == MIRRORED else "twice the trained rank"
            lines.append(f"saved as a plain LoRA of rank {', '.join(map(str, ranks))} ({trained})")
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        return lines


@dataclass(frozen=True)
class FirstStep:
    """Inner products of one layer's first step with its gradient; they add over layers."""

    product: float
    step_squared: float
    gradient_squared: float

    @property
    def cosine(self) -> float | None:
        """Cosine of the step with the gradient; None where one of them is zero."""
        if self.step_squared <= 0 or self.gradient_squared <= 0:
            return None
        return self.product / math.sqrt(self.step_squared) / math.sqrt(self.gradient_squared)

    @property
    def relative_norm(self) -> float | None:
        """Norm of the step over that of the gradient; None for a zero gradient."""
        return math.sqrt(self.step_squared / self.gradient_squared) if self.gradient_squared > 0 else None


def first_step(gradient: LowRankGradient, factors: Factors, eta: float) -> FirstStep:
    """Compares the first step eta^2 (G A^T A + B B^T G) of Lemma 3.1 with G, without forming either.

    Args:
        gradient: G; what its factors leave out counts in its norm, and is taken as orthogonal to A and B.
        factors: the start.
        eta: the adapter's scaling.

    Returns:
        <step, G>, ||step||^2 and ||G||^2, in float64.
    """
    U, S, Vh = (factor.double() for factor in (gradient.U, gradient.S, gradient.Vh))
    A, B = factors.A.double().to(U.device), factors.B.double().to(U.device)
    rows = S[:, None] * (Vh @ A.T)  # (k, r): G A^T = U rows
    columns = (B.T @ U) * S  # (r, k): B^T G = columns Vh
    by_rows = ((rows.T @ rows) * (A @ A.T)).sum()  # ||G A^T A||^2
    by_columns = ((columns @ columns.T) * (B.T @ B)).sum()  # ||B B^T G||^2
    both = (columns @ (Vh @ A.T)).square().sum()  # <G A^T A, B B^T G> = ||B^T G A^T||^2
    return FirstStep(
        product=eta**2 * float(rows.square().sum() + columns.square().sum()),
        step_squared=eta**4 * float(by_rows + by_columns + 2 * both),
        gradient_squared=gradient.norm**2,
    )


def product_norm(factors: Factors) -> float:
    """||B A||_F without forming it, in float64."""
    A, B = factors.A.double(), factors.B.double()
    return math.sqrt(max(0.0, float(torch.sum((B.T @ B) * (A @ A.T)))))


def total_cosine(steps: list[FirstStep]) -> float | None:
    """Cosine of all layers' first steps together with the gradient step."""
    return FirstStep(
        product=math.fsum(step.product for step in steps),
        step_squared=math.fsum(step.step_squared for step in steps),
        gradient_squared=math.fsum(step.gradient_squared for step in steps),
    ).cosine


def total_coverage(gradients: list[LowRankGradient], ranks: list[int]) -> float:
    """Share of the squared norm of all gradients in their first 2r singular values."""
    total = math.fsum(gradient.norm**2 for gradient in gradients)
    covered = math.fsum(
        gradient.coverage(2 * rank) * gradient.norm**2 for gradient, rank in zip(gradients, ranks, strict=True)
    )
    return covered / total if total > 0 else 0.0


def _row(name: str, layer: LayerReport, width: int) -> str:
    cells = (
        _number(layer.coverage),
        _number(layer.cosine),
        _number(layer.step_norm),
        _number(layer.offset_norm),
    )
    return f"{name:<{width}}  {layer.rank:>4}  {cells[0]:>8}  {cells[1]:>6}  {cells[2]:>7}  {cells[3]:>8}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
