"""What an architecture of the registry is, and the batches that the kinds of models take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 96
CLASSES = 5

Batch = dict[str, Any]
MakeBatch = Callable[[torch.Generator], Batch]


@dataclass(frozen=True)
class Architecture:
    """A tiny model of one kind, the adapter it gets, and what is expected of it."""

    model: str  # class in transformers
    config: Mapping[str, Any]
    batch: MakeBatch
    targets: str | list[str] = "all-linear"
    fan_in_fan_out: bool = False
    lora: Mapping[str, Any] = field(default_factory=dict)  # further settings of LoraConfig
    settings: Mapping[str, Any] = field(default_factory=dict)  # keywords of `initialize` that the model asks for
    output: str = "logits"
    refusal: str | None = None  # how the error starts, where the adapter cannot be initialised

    def build(self) -> nn.Module:
        model_class = getattr(transformers, self.model)
        return model_class(model_class.config_class(**self.config))


def tokens(generator: torch.Generator, rows: int = 3, length: int = 14) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def causal_batch(generator: torch.Generator) -> Batch:
    """A batch with padding and a masked prompt whose length differs between batches."""
    ids = tokens(generator)
    labels = ids.clone()
    labels[:, : int(torch.randint(1, 9, (), generator=generator))] = -100
    mask = torch.ones_like(ids)
    mask[0, 10:], labels[0, 10:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def sequence_to_sequence_batch(generator: torch.Generator) -> Batch:
    labels = tokens(generator, length=int(torch.randint(2, 8, (), generator=generator)))
    labels[0, -1] = -100
    return {"input_ids": tokens(generator), "labels": labels}


def masked_batch(generator: torch.Generator) -> Batch:
    ids = tokens(generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.4, ids, -100)
    labels[0, 3] = ids[0, 3]
    return {"input_ids": ids, "labels": labels}


def text_class_batch(generator: torch.Generator) -> Batch:
    rows = int(torch.randint(2, 5, (), generator=generator))
    return {"input_ids": tokens(generator, rows), "labels": classes(generator, rows)}


def image_batch(generator: torch.Generator, side: int = 16) -> Batch:
    rows = int(torch.randint(2, 5, (), generator=generator))
    return {"pixel_values": images(generator, rows, side), "labels": classes(generator, rows)}


def classes(generator: torch.Generator, rows: int) -> Tensor:
    return torch.randint(0, CLASSES, (rows,), generator=generator)


def images(generator: torch.Generator, rows: int, side: int) -> Tensor:
    return torch.randn(rows, 3, side, side, generator=generator)
