"""A learning rate from one gradient and about ten forward passes: the first minimum along AdamW's first step.

batches --two halves--> gradient of each --minus its sign--> direction
        --the OTHER half's loss at theta + rate * direction, rates in factors of 2--> first minimum
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from .errors import BatchError, GradientError
from .learning_rate_line import Losses, first_valley, refined_minimum, walk
from .loss import (
    Batch,
    LossFunction,
    MicroBatch,
    WeightFunction,
    collect_micro_batches,
    input_device,
    mean_loss,
    move_to,
)
from .passes import gradient_pass
from .quantization import require_gradients

if TYPE_CHECKING:
    from os import PathLike

logger = logging.getLogger("loraga")

Curve = tuple[tuple[float, float], ...]

FIRST_FALL = 1 / 64  # the first rate is the one that lowers the loss by this part, were the loss linear
START_AT_ZERO_LOSS = 1e-4  # where the loss is 0 there is no such part
USUAL_RATES = 9  # for the progress bar's estimate


@dataclass(frozen=True)
class SuggestedRate:
    """A learning rate for AdamW, and the line that it was read from.

    Attributes:
        value: the suggested peak learning rate: the first minimum of `curve`.
        low: the lowest of `value` and the halves' first minima; 0 if one half's loss does not fall at all.
        high: the highest of them.
        curve: (rate, loss) by rising rate: the mean loss of all batches after one step of that size, each
            half's after a step along the other half's gradient; infinite where the loss is not finite.
        halves: the same of each half alone.
        loss_before: the mean loss of all batches at the parameters as they are.
        loss_at_value: the loss at `value`, measured; it compares starts without choosing a learning rate.
        num_batches: micro-batches used, both halves together.
        loss_terms: loss terms in them.
        parameters: trainable parameters that a step moves (those whose gradient is not zero).
        dtypes: their dtypes; the step is rounded to these, as training in them would.
        seconds: time it took.
    """

    value: float
    low: float
    high: float
    curve: Curve
    halves: tuple[Curve, Curve]
    loss_before: float
    loss_at_value: float
    num_batches: int
    loss_terms: float
    parameters: int
    dtypes: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        """The rate, its error bar and what one step does, in one line."""
        losses = f"from {self.loss_before:.4g} to {self.loss_at_value:.4g}"
        return (
            f"learning rate {self.value:.2g} ({self.low:.2g} to {self.high:.2g} by halves of the batches): "
            f"one step takes the loss of other batches {losses}"
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values; a loss that is not finite becomes None.

        Returns:
            The fields by name.
        """
        fields = asdict(self)
        fields["curve"] = _json_curve(self.curve)
        fields["halves"] = [_json_curve(curve) for curve in self.halves]
        fields["dtypes"] = list(self.dtypes)
        return fields

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws the line with its first minimum and error bar; needs matplotlib, which `loraga[lab]` brings.

        Args:
            path: the picture's file; the ending decides its format.

        Raises:
            LoragaError: if matplotlib is not installed.
        """
        from .learning_rate_plot import plot_rate

        plot_rate(self, path)


def suggest_learning_rate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_batches: int | None = 8,
    loss: LossFunction | None = None,
    weight: WeightFunction | None = None,
    seed: int = 0,
    max_rates: int = 20,
    progress: bool = True,
) -> SuggestedRate:
    """Suggests AdamW's peak learning rate for a model as it is, without training it.

    The batches are dealt into two halves in turn. Each half gives a gradient, weighted by loss terms, and a
    direction: minus the gradient's sign, AdamW's first step (parameters with zero gradient stay, so that a
    fresh LoRA moves B alone). The loss of the OTHER half is measured along it at rates in factors of 2, until
    it has fallen and risen again; the first minimum, refined by a parabola, is the suggestion, and the first
    minima of the two halves alone are its error bar. It costs one gradient pass and about ten forward passes
    over the batches.

    The model is left as it was, bit for bit, also after an exception: parameters, `.grad`, `requires_grad`,
    modes and random states. Memory beside the passes: one copy of the parameters that move and two int8 signs
    for each.

    Args:
        model: any model with trainable parameters: an adapter, fresh or trained, or full fine-tuning.
        batches: training batches, of the size that training will use; dicts of tensors with labels.
        num_batches: micro-batches to use, at least 2; None takes all.
        loss: (model, batch) -> mean loss; None for the model's own.
        weight: number of loss terms of a batch, for losses that labels do not describe.
        seed: a model or loss that draws random numbers draws the same ones for a batch at every rate.
        max_rates: rates to try at most before giving up; usually eight to ten are needed.
        progress: show a progress bar with the time left, unless transformers' bars are off.

    Returns:
        The rate with its error bar and curve.

    Raises:
        BatchError: if there are fewer than two batches, or one cannot be used or has no finite loss.
        AdapterError: if no gradient passes through a quantised layer.
        GradientError: if nothing is trainable, no finite gradient arrives, or the line has no minimum.
    """
    began = time.perf_counter()
    require_gradients(model)
    with gradient_pass(model, trainable=True):
        micro_batches = collect_micro_batches(model, batches, num_batches, loss, weight)
        if len(micro_batches) < 2:
            raise BatchError(
                "a learning rate needs at least 2 batches, one for the gradient and one for the loss, got 1; "
                "pass more batches, or split this one"
            )
        trainable = _trainable_parameters(model)
        halves = [list(enumerate(micro_batches))[half::2] for half in (0, 1)]
        with _progress(len(micro_batches), progress) as advance:
            passes = _Passes(model, loss, seed, advance)
            at_start, steps = zip(*(_loss_and_step(passes, trainable, half) for half in halves), strict=True)
            before = _with_mean(halves, at_start)
            _stop_checkpointing(model)
            with _moved([step.signs for step in steps]) as move:
                evaluate = partial(_losses_after_a_step, passes, halves, steps, move)
                grid = walk(evaluate, before, _first_rate(before[0], steps), max_rates)
                value, points = _minimum(grid, before[0], evaluate)
    low, high = _error_bar(grid, before, value)
    moved = {parameter for step in steps for parameter in step.signs}
    rate = SuggestedRate(
        value=value,
        low=low,
        high=high,
        curve=_curve(points, 0),
        halves=(_curve(points, 1), _curve(points, 2)),
        loss_before=before[0],
        loss_at_value=dict(points)[value][0],
        num_batches=len(micro_batches),
        loss_terms=sum(micro_batch.loss_terms for micro_batch in micro_batches),
        parameters=sum(parameter.numel() for parameter in moved),
        dtypes=tuple(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in moved})),
        seconds=time.perf_counter() - began,
    )
    logger.info("%s; %d rates, %d batches, %.1f s", rate, len(points), rate.num_batches, rate.seconds)
    return rate


Half = Sequence[tuple[int, MicroBatch]]  # with each micro-batch's position, for messages and seeds
Signs = dict[nn.Parameter, Tensor]  # int8, of the parameter's shape: minus the sign of its gradient
Points = list[tuple[float, Losses]]  # by rising rate: the mean loss, the first half's, the second half's


@dataclass(frozen=True)
class _Step:
    signs: Signs
    slope: float  # the loss falls by slope * rate to first order: the gradient's sum of magnitudes


@dataclass(frozen=True)
class _Passes:
    """Losses of micro-batches at the model's present parameters."""

    model: nn.Module
    loss: LossFunction | None
    seed: int
    advance: Callable[[], None]

    def loss_of(self, index: int, micro_batch: MicroBatch) -> Tensor:
        # a loss that draws random numbers must draw the same at every rate, or the line is noise
        random.seed(self.seed + index)
        np.random.seed((self.seed + index) % 2**32)  # noqa: NPY002 (it is what a loss may draw from)
        torch.manual_seed(self.seed + index)
        value = mean_loss(self.model, move_to(micro_batch.inputs, input_device(self.model)), index, self.loss)
        self.advance()
        return value

    @torch.no_grad()
    def loss_or_infinity(self, half: Half) -> float:
        """The half's mean loss; infinite if it is not finite, which far out on a line is no error."""
        try:
            losses = [self.loss_of(index, micro_batch).item() for index, micro_batch in half]
        except BatchError:
            return math.inf
        return _weighted_mean(half, losses)


def _trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise GradientError(
            "the model has no trainable parameter; attach an adapter with get_peft_model (or load it with "
            "is_trainable=True), or call model.requires_grad_(True) for full fine-tuning"
        )
    return trainable


def _loss_and_step(passes: _Passes, trainable: dict[str, nn.Parameter], half: Half) -> tuple[float, _Step]:
    """The half's mean loss, and AdamW's first step on its gradient; leaves every `.grad` None."""
    total = sum(micro_batch.loss_terms for _, micro_batch in half)
    losses = []
    for index, micro_batch in half:
        loss = passes.loss_of(index, micro_batch)
        if not loss.requires_grad:
            raise GradientError(
                f"batch {index}: the loss does not depend on a trainable parameter; with reentrant gradient "
                "checkpointing call model.enable_input_require_grads() first"
            )
        (loss * (micro_batch.loss_terms / total)).backward()
        losses.append(loss.item())
    return _weighted_mean(half, losses), _step(trainable)


def _step(trainable: dict[str, nn.Parameter]) -> _Step:
    signs, slope = {}, 0.0
    for name, parameter in trainable.items():
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            continue
        magnitude = torch.linalg.vector_norm(gradient, 1, dtype=_arithmetic_dtype(gradient)).item()
        if not math.isfinite(magnitude):
            raise GradientError(f"the gradient of {name} is not finite; look for a bad row or an overflow in its dtype")
        if magnitude > 0:
            signs[parameter] = gradient.sign().neg_().to(torch.int8)
            slope += magnitude
    if not signs:
        raise GradientError(
            "the gradient of every trainable parameter is zero or missing; check that the trainable "
            "parameters are in use (model.set_adapter)"
        )
    return _Step(signs, slope)


def _arithmetic_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _stop_checkpointing(model: nn.Module) -> None:
    # without gradients nothing is recomputed, and reentrant checkpoints would warn; gradient_pass undoes it
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = False


@contextmanager
def _moved(all_signs: Sequence[Signs]) -> Iterator[Callable[[Signs, float], None]]:
    """Lends a function that sets the parameters to start + rate * sign; at the end they are as before."""
    moving = dict.fromkeys(parameter for signs in all_signs for parameter in signs)
    start = {parameter: parameter.detach().clone() for parameter in moving}

    def move(signs: Signs, rate: float) -> None:
        with torch.no_grad():
            for parameter, value in start.items():
                sign = signs.get(parameter)
                if sign is None:  # it moves along the other half's gradient only
                    parameter.copy_(value)
                else:
                    dtype = _arithmetic_dtype(value)  # so that a bfloat16 step is rounded once
                    parameter.copy_(torch.add(value.to(dtype), sign.to(dtype), alpha=rate))

    @torch.no_grad()
    def restore() -> None:
        for parameter, value in start.items():
            parameter.copy_(value)

    try:
        yield move
    finally:
        try:
            restore()
        except BaseException:  # Ctrl-C between two parameters
            restore()
            raise


def _first_rate(before: float, steps: Sequence[_Step]) -> float:
    fall = FIRST_FALL * abs(before)
    return fall * len(steps) / sum(step.slope for step in steps) if fall > 0 else START_AT_ZERO_LOSS


def _losses_after_a_step(
    passes: _Passes,
    halves: Sequence[Half],
    steps: Sequence[_Step],
    move: Callable[[Signs, float], None],
    rate: float,
) -> Losses:
    """The mean loss, and each half's after a step of this size along the other half's gradient."""
    losses = []
    for half, step in zip(halves, reversed(steps), strict=True):
        move(step.signs, rate)
        losses.append(passes.loss_or_infinity(half))
    return _with_mean(halves, losses)


def _minimum(grid: Points, before: float, evaluate: Callable[[float], Losses]) -> tuple[float, Points]:
    """The first minimum of the mean curve, and the grid with the loss at its refinement measured."""
    rates, losses = [rate for rate, _ in grid], [losses[0] for _, losses in grid]
    valley = first_valley(losses, before)
    span = f"{len(rates)} learning rates from {rates[0]:.2g} to {rates[-1]:.2g}"
    if valley.index is None:
        raise GradientError(
            f"a step along one half's gradient lowers the other half's loss ({before:.4g}) at none of "
            f"{span}: the gradient is mostly noise, or the model is at a minimum; pass more or larger batches"
        )
    if not valley.risen or valley.index == 0:
        end = "largest" if valley.index else "smallest"
        raise GradientError(
            f"of {span} the {end} gives the lowest loss, so the minimum lies outside; raise max_rates, and "
            "check that the loss has a minimum and that a step is not lost in the parameters' dtype"
        )
    best, refined = rates[valley.index], refined_minimum(rates, losses, valley.index)
    points = dict(grid)
    if refined not in points:
        points[refined] = evaluate(refined)
    # a line that is no parabola can be higher there
    value = refined if points[refined][0] <= points[best][0] else best
    return value, sorted(points.items())


def _error_bar(grid: Points, before: Losses, value: float) -> tuple[float, float]:
    rates = [rate for rate, _ in grid]
    minima = [value]
    for half in (1, 2):
        losses = [losses[half] for _, losses in grid]
        index = first_valley(losses, before[half]).index
        minima.append(0.0 if index is None else refined_minimum(rates, losses, index))
    return min(minima), max(minima)


def _with_mean(halves: Sequence[Half], losses: Sequence[float]) -> Losses:
    terms = [sum(micro_batch.loss_terms for _, micro_batch in half) for half in halves]
    return (float(np.average(losses, weights=terms)), *losses)


def _weighted_mean(half: Half, losses: Sequence[float]) -> float:
    return float(np.average(losses, weights=[micro_batch.loss_terms for _, micro_batch in half]))


def _curve(points: Points, which: int) -> Curve:
    return tuple((rate, losses[which]) for rate, losses in points)


def _json_curve(curve: Curve) -> list[list[float | None]]:
    return [[rate, loss if math.isfinite(loss) else None] for rate, loss in curve]


@contextmanager
def _progress(num_batches: int, shown: bool) -> Iterator[Callable[[], None]]:
    with tqdm(
        total=num_batches * (1 + USUAL_RATES),
        desc="learning rate",
        unit="batch",
        leave=False,
        disable=not (shown and transformers_logging.is_progress_bar_enabled()),
    ) as bar:

        def advance() -> None:
            if bar.n >= bar.total:  # how many rates it takes is not known before
                bar.total = bar.n + num_batches
            bar.update()

        yield advance
