"""The loss of one batch, and the number of terms that this loss is the mean of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .errors import BatchError

Batch = Mapping[str, Any]
LossFunction = Callable[[nn.Module, Batch], Tensor]
WeightFunction = Callable[[Batch], float]

IGNORED_LABEL = -100
SHIFTED_LOSSES = ("ForCausalLM", "ForConditionalGeneration")


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch and the number of loss terms that its mean loss is taken over."""

    inputs: Batch
    loss_terms: float


def collect_micro_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    num_batches: int | None,
    loss: LossFunction | None = None,
    weight: WeightFunction | None = None,
) -> list[MicroBatch]:
    """Takes the first micro-batches of an iterable and counts the loss terms of each.

    Args:
        model: the model that the batches are for; it decides how labels are counted.
        batches: dicts of tensors with labels, as a DataLoader yields them.
        num_batches: how many to take at most; None takes all.
        loss: the custom loss in use, or None for the model's own; without labels a custom loss counts examples.
        weight: number of loss terms of a batch, for losses that labels do not describe.

    Returns:
        The micro-batches, in order.

    Raises:
        BatchError: if there is no batch, or one has no labels, only masked labels, or a weight that is not positive.
    """
    return [
        MicroBatch(inputs, _counted_terms(model, inputs, index, loss, weight))
        for index, inputs in enumerate(take_batches(batches, num_batches))
    ]


def take_batches(batches: Iterable[Batch], num_batches: int | None) -> list[Batch]:
    """Takes the first batches of an iterable.

    Args:
        batches: dicts of tensors.
        num_batches: how many to take at most; None takes all.

    Returns:
        At least one batch.

    Raises:
        BatchError: if there is none, or what comes is no dict.
    """
    if isinstance(batches, Mapping):
        raise BatchError("batches is one batch, not an iterable of batches; pass [batch]")
    if num_batches is not None and num_batches < 1:
        raise BatchError(f"num_batches is {num_batches}; at least one micro-batch is needed")
    taken = list(islice(batches, num_batches))
    if not taken:
        raise BatchError("batches is empty; pass at least one dict of tensors with labels")
    for index, inputs in enumerate(taken):
        if not isinstance(inputs, Mapping):
            raise BatchError(f"batch {index} is a {type(inputs).__name__}, not a dict of tensors")
    return taken


def _counted_terms(
    model: nn.Module, inputs: Batch, index: int, loss: LossFunction | None, weight: WeightFunction | None
) -> float:
    terms = float(weight(inputs)) if weight is not None else loss_terms(model, inputs, index, loss)
    if not 0 < terms < float("inf"):
        raise BatchError(
            f"batch {index} has {terms:g} loss terms: all its labels are masked (-100) or its weight is not positive"
        )
    return terms


def loss_terms(model: nn.Module, inputs: Batch, index: int = 0, loss: LossFunction | None = None) -> float:
    """Counts the terms that a batch's mean loss is taken over.

    Causal models score `labels[:, 1:]`, other token losses and segmentation score `labels`, and a loss over whole
    examples (classification, CTC, or a custom loss whose batches have no labels) counts examples. A CTC loss that is a
    sum, as transformers' default is, counts each batch once.

    Args:
        model: the model; a transformers model names its loss (`loss_type`).
        inputs: one batch.
        index: position of the batch, for the message.
        loss: the custom loss in use, or None.

    Returns:
        The number of terms; 0 if all labels are masked.

    Raises:
        BatchError: if the model's own loss is used and the batch has no labels, or labels that are no tensor.
    """
    labels = inputs.get("labels")
    if labels is None:
        if loss is None:
            raise BatchError(
                f"batch {index} has no 'labels' (its keys: {', '.join(map(str, inputs)) or 'none'}); "
                "add them, or pass weight=callable(batch), the number of terms that the loss is the mean of, and loss= "
                "unless the model returns one"
            )
        return float(_number_of_examples(inputs, index))
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BatchError(
            f"batch {index}: its labels are no tensor ({error}), so their terms cannot be counted; "
            "pass weight=callable(batch)"
        ) from error
    base = _base_model(model)
    if type(base).__name__.endswith("ForCTC"):
        return 1.0 if loss is None and base.config.ctc_loss_reduction == "sum" else float(labels.shape[0])
    if labels.is_floating_point():  # regression and multi-label targets have no ignored value
        return float(labels.shape[0] if labels.ndim else 1)
    if labels.ndim >= 2 and shifts_labels(model):
        labels = labels[..., 1:]
    ignored = IGNORED_LABEL
    if labels.ndim == 3:  # one label a pixel
        ignored = getattr(getattr(base, "config", None), "semantic_loss_ignore_index", IGNORED_LABEL)
    return float((labels != ignored).sum())


def shifts_labels(model: nn.Module) -> bool:
    """Whether the model's own loss compares the output at t with the label at t + 1."""
    base = _base_model(model)
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return False
    if getattr(base, "loss_type", None) in SHIFTED_LOSSES:
        return True
    # GPT-2 names no loss and gets the shifted one by default
    return type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _base_model(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def mean_loss(model: nn.Module, inputs: Batch, index: int = 0, loss: LossFunction | None = None) -> Tensor:
    """Computes a batch's mean loss.

    Args:
        model: the model.
        inputs: one batch, already on the model's device.
        index: position of the batch, for the message.
        loss: a custom loss (model, batch) -> mean loss, or None for the model's own.

    Returns:
        The loss, a scalar tensor.

    Raises:
        BatchError: if the model returns no loss, or a loss that is not finite.
    """
    value = loss(model, inputs) if loss is not None else _own_loss(model, inputs, index)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise BatchError(f"batch {index}: the loss must be a tensor with one element, got {_describe(value)}")
    if not torch.isfinite(value):
        raise BatchError(
            f"batch {index}: the loss is {value.item()}; look for a bad row or an overflow in the model's dtype"
        )
    return value


def _own_loss(model: nn.Module, inputs: Batch, index: int) -> Any:
    outputs = model(**inputs)
    value = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if value is None:
        raise BatchError(f"batch {index}: {type(model).__name__} returned no loss; pass loss=callable(model, batch)")
    return value


def one_example(inputs: Batch) -> Batch:
    """Takes from a batch the example with the most labels, where that is sure to be a batch too.

    Args:
        inputs: one batch for a model's own loss.

    Returns:
        The example as a batch; the batch itself where not all that it holds has one row an example.
    """
    values = list(inputs.values())
    if not all(isinstance(value, Tensor) and value.ndim for value in values):
        return inputs
    rows = {value.shape[0] for value in values}
    position_ids = inputs.get("position_ids")  # (3, rows, tokens) for models with several kinds of position
    if len(rows) != 1 or 0 in rows or (position_ids is not None and position_ids.ndim > 2):
        return inputs
    labels, row = inputs.get("labels"), 0
    if labels is not None and labels.ndim > 1 and not labels.is_floating_point():
        row = int((labels[:, 1:] != IGNORED_LABEL).flatten(1).sum(dim=1).argmax())
    return {key: value[row : row + 1] for key, value in inputs.items()}


def move_to(value: Any, device: torch.device) -> Any:
    """Copies the tensors of a batch to a device; mappings become dicts, lists and tuples keep their kind."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: move_to(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(move_to(item, device) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(move_to(item, device) for item in value)
    return value


def input_device(model: nn.Module) -> torch.device:
    """Device that a batch must be on: that of the model's first parameter that is not offloaded."""
    devices = (parameter.device for parameter in model.parameters() if not parameter.is_meta)
    return next(devices, torch.device("cpu"))


def _number_of_examples(inputs: Batch, index: int) -> int:
    for value in inputs.values():
        if isinstance(value, Tensor) and value.ndim:
            return int(value.shape[0])
    raise BatchError(f"batch {index} holds no tensor to count examples by; pass weight=callable(batch)")


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
