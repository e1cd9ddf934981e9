"""From batches to {layer: LowRankGradient}: one pass over the data, each micro-batch counting by its loss terms."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .accumulate import Accumulator, FactorAccumulator, MatrixAccumulator, holds_matrix
from .capture import CallCounter, capture, layer_shape
from .errors import GradientError
from .gradient import COLUMNS_PER_RANK, LowRankGradient, layer_generator
from .layers import target_layers, without_lora
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
from .sharding import is_sharded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Estimator = Literal["streaming", "exact"]

# what a loss is multiplied by where layers compute in float16, whose smallest number is 6e-8: torch.amp.GradScaler's
# first scale, and less in turn; powers of two change no digit
LOSS_SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)

logger = logging.getLogger("loraga")


def estimate_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    rank: int,
    *,
    num_batches: int | None = 8,
    estimator: Estimator = "streaming",
    loss: LossFunction | None = None,
    weight: WeightFunction | None = None,
    adapter_name: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, LowRankGradient]:
    """Estimates the gradient of each linear layer's weight, at the base model's own weights.

    G is what one full-batch step over all the batches would see: the mean over their loss terms. Low-rank adapters are
    disabled, dropout is off, checkpointing stays on; the model is left as it was, also after an exception. Where layers
    compute in float16, the loss is scaled up for the pass as in training, and down again until nothing overflows.

    Args:
        model: a model, or a PeftModel, of which the layers under its LoRA adapter are taken. Of a plain model all
            linear layers but the output embeddings are taken, as PEFT's "all-linear" does.
        batches: dicts of tensors with labels.
        rank: largest adapter rank that the gradients are to serve; min(4 rank, d_out, d_in) triplets are kept.
        num_batches: micro-batches to take at most; None takes all.
        estimator: "streaming" keeps factors only (one pass, memory independent of the number of batches); "exact"
            is the paper's Algorithm 1 for one micro-batch and its Algorithm 2 for several.
        loss: callable(model, batch) -> mean loss; by default the model's own.
        weight: callable(batch) -> number of loss terms; by default counted from the labels.
        adapter_name: adapter of a PeftModel whose layers are taken; by default the active one.
        seed: of the range finder.
        progress: show a progress bar with the time left.

    Returns:
        Each layer's gradient by its name, in the model's order, float32, on the layers' devices. A layer that no loss
        term depends on is left out.

    Raises:
        BatchError: if the batches cannot be used.
        GradientError: if no layer gets a gradient, or a gradient is not finite.
        AdapterError: if the adapter does not exist or is merged, or no gradient passes through a quantised layer.
    """
    layers = target_layers(model, adapter_name)
    require_gradients(model)
    require_rank(rank)
    if estimator not in ("streaming", "exact"):
        raise GradientError(f"estimator={estimator!r} is unknown; choose 'streaming' or 'exact'")
    with gradient_pass(model), without_lora(model, adapter_name):
        micro_batches = collect_micro_batches(model, batches, num_batches, loss, weight)
        for loss_scale in _loss_scales(model):
            sums = _Sums(layers, COLUMNS_PER_RANK * rank, estimator, seed, single=len(micro_batches) == 1)
            if _sum_all(model, layers, micro_batches, loss, sums, loss_scale, progress):
                break
        gradients = sums.finish(sum(micro_batch.loss_terms for micro_batch in micro_batches))
    if not gradients:
        raise GradientError("no layer got a gradient: the loss does not depend on any of the adapted layers")
    return gradients


def require_rank(rank: int) -> None:
    """Refuses a rank that is not a positive whole number.

    Args:
        rank: the rank.

    Raises:
        GradientError: if it is not.
    """
    if not isinstance(rank, int) or rank < 1:
        raise GradientError(f"rank is {rank!r}; it must be a positive whole number")


def _sum_all(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    micro_batches: Sequence[MicroBatch],
    loss: LossFunction | None,
    sums: _Sums,
    loss_scale: float,
    progress: bool,
) -> bool:
    """Sums the gradients of all micro-batches; False if at this scale of the loss they overflow float16."""
    with (
        capture(model, layers, sums.receive) as counter,
        tqdm(micro_batches, desc="gradient", unit="batch", disable=not progress) as bar,
    ):
        try:
            for index, micro_batch in enumerate(bar):
                _backward(model, micro_batch, index, loss, sums, counter, loss_scale)
        except _NotFiniteError as error:
            if not counter.saw_half or loss_scale == 1:
                raise
            bar.leave = False
            logger.info("float16 overflows at %g times the loss (%s); again at less", loss_scale, error)
            return False
    return True


def _loss_scales(model: nn.Module) -> tuple[float, ...]:
    """Those to try in turn: one where weights are sharded, since no process can then try again alone."""
    return (1.0,) if any(is_sharded(parameter) for parameter in model.parameters()) else LOSS_SCALES


def _backward(
    model: nn.Module,
    micro_batch: MicroBatch,
    index: int,
    loss: LossFunction | None,
    sums: _Sums,
    counter: CallCounter,
    loss_scale: float,
) -> None:
    inputs = move_to(micro_batch.inputs, input_device(model))
    counter.start_forward()
    with torch.enable_grad():
        value = mean_loss(model, inputs, index, loss)
        loss_scale = loss_scale if counter.saw_half else 1.0
        scaled = value.float() * loss_scale
    if not scaled.requires_grad:
        raise GradientError(f"batch {index}: the loss does not depend on any of the adapted layers")
    counter.start_backward()
    sums.start(micro_batch.loss_terms, index, counter, loss_scale)
    scaled.backward()


class _NotFiniteError(GradientError):
    """A call's product has entries that are not finite."""


class _Sums:
    """One accumulator a layer, and what the receiver must know of the micro-batch under way."""

    def __init__(
        self, layers: Mapping[str, nn.Module], columns: int, estimator: Estimator, seed: int, *, single: bool
    ) -> None:
        self._columns = columns
        self._estimator = estimator
        self._seed = seed
        self._single = single
        self._shapes = {name: layer_shape(layer) for name, layer in layers.items()}
        self._devices: dict[str, torch.device] = {}  # where a layer's inputs are: an offloaded weight has no device
        self._accumulators: dict[str, Accumulator] = {}
        self._finished: dict[str, LowRankGradient] = {}
        self._calls_seen: dict[str, int] = {}
        self._weight, self._loss_terms = 0.0, 0.0
        self._batch = 0
        self._counter = CallCounter()

    def start(self, loss_terms: float, batch: int, counter: CallCounter, loss_scale: float) -> None:
        self._weight, self._loss_terms = loss_terms / loss_scale, loss_terms
        self._batch, self._counter = batch, counter
        self._calls_seen.clear()

    def receive(self, layer: str, inputs: Tensor, output_gradients: Tensor) -> None:
        if layer not in self._accumulators:
            self._accumulators[layer] = self._accumulator(layer)
            self._devices[layer] = inputs.device
        try:
            with torch.autocast(inputs.device.type, enabled=False):  # backward runs under the caller's autocast
                self._accumulators[layer].add(inputs, output_gradients, self._weight)
        except GradientError as error:
            raise _NotFiniteError(
                f"layer {layer}, batch {self._batch}: {error}; look for a bad row, or estimate in float32"
            ) from error
        self._calls_seen[layer] = self._calls_seen.get(layer, 0) + 1
        # Algorithm 1: with one micro-batch a layer is complete after the last of its calls, and its matrix is freed
        if self._estimator == "exact" and self._single and self._calls_seen[layer] == self._counter.calls(layer):
            self._finish(layer, self._loss_terms)

    def _accumulator(self, layer: str) -> Accumulator:
        columns = min(self._columns, *self._shapes[layer])
        if self._estimator == "exact":
            return MatrixAccumulator(columns, None if self._single else torch.device("cpu"))
        if holds_matrix(*self._shapes[layer], columns):
            return MatrixAccumulator(columns, generator=layer_generator(self._seed, layer))
        return FactorAccumulator(columns, layer_generator(self._seed, layer))

    def finish(self, loss_terms: float) -> dict[str, LowRankGradient]:
        for layer in list(self._accumulators):
            self._finish(layer, loss_terms)
        return {layer: self._finished[layer] for layer in self._shapes if layer in self._finished}

    def _finish(self, layer: str, loss_terms: float) -> None:
        accumulator = self._accumulators.pop(layer)
        with torch.autocast(self._devices[layer].type, enabled=False):
            self._finished[layer] = accumulator.finish(loss_terms)
