"""Batches as PEFT's EVA takes them: which positions of a layer's input it looks at, in decoders and encoders.

PEFT's own rule, the tokens that have a label, is for a causal model whose labels are as long as its input. Here labels
may be shorter, those of the last columns alone, and an encoder has no labels: all of its tokens count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import LabError, SettingsError
from .examples import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 4  # PEFT decomposes each batch to 4 times the rank
MOST_PASSES = 100


class EvaInputs:
    """What PEFT's EVA is given.

    Args:
        batches: micro-batches as `Collator` makes them.
        rank: of the adapter.
        is_encoder_decoder: whether the model has two sides.

    Raises:
        SettingsError: if a batch has too few tokens to decompose.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], rank: int, *, is_encoder_decoder: bool) -> None:
        self.batches = [_whole(batch, is_encoder_decoder) for batch in batches]
        self._is_encoder_decoder, self._calls = is_encoder_decoder, 0
        for batch in self.batches:
            tokens = min(int(mask.sum()) for mask in self._masks(batch))
            if tokens < WIDTH * rank:
                raise SettingsError(
                    f"EVA looks at the tokens of a target, and a micro-batch has {tokens} of them, fewer than {WIDTH} "
                    "times rank; raise per_device_train_batch_size, or lower rank"
                )

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """One forward; PEFT goes on until the components stand still, which must come to an end.

        Args:
            model: the model.
            batch: one of the batches.

        Returns:
            What the model gives.

        Raises:
            LabError: if they do not.
        """
        self._calls += 1
        if self._calls > MOST_PASSES * len(self.batches):
            raise LabError(f"EVA's components still move after {MOST_PASSES} passes over its batches; give more of them")
        return model(**batch)

    def of_model(self, batch: dict[str, Any], config: Any) -> list[Tensor]:
        """The positions of each side that count, (B, T) or (B, K) of booleans."""
        return self._masks(batch)

    def of_layer(self, inputs: Any, masks: list[Tensor], layer: str) -> Tensor:
        """A layer's inputs at the positions that count.

        Args:
            inputs: the layer's arguments; the first is (B, T, d_in).
            masks: of each side; they differ in length.
            layer: its name.

        Returns:
            (positions, d_in).

        Raises:
            SettingsError: if its input is not a sequence of either side.
        """
        values = inputs if isinstance(inputs, Tensor) else inputs[0]
        for mask in masks:
            if values.shape[:-1] == mask.shape:
                return values[mask]
        raise SettingsError(
            f"EVA cannot tell which tokens the inputs of layer {layer} belong to, of {tuple(values.shape)}; leave it "
            "out of target_modules"
        )

    def _masks(self, batch: dict[str, Any]) -> list[Tensor]:
        there, labelled = batch["attention_mask"].bool(), batch["labels"] != IGNORED
        return [there, labelled] if self._is_encoder_decoder else [there & labelled]


def _whole(batch: dict[str, Any], is_encoder_decoder: bool) -> dict[str, Any]:
    """The batch with a label for each column; of two sides, with labels of another length than the input."""
    labels, width = batch["labels"], batch["input_ids"].shape[1]
    if is_encoder_decoder:
        padded = F.pad(labels, (0, int(labels.shape[1] == width)), value=IGNORED)
    else:
        padded = F.pad(labels, (width - labels.shape[1], 0), value=IGNORED)
    return {**{key: value for key, value in batch.items() if torch.is_tensor(value)}, "labels": padded}
