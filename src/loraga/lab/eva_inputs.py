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
MOST_FORWARDS = 1000


class EvaInputs:
    """What PEFT's EVA is given.

    Args:
        batches: micro-batches as `Collator` makes them.
        rank: of the adapter.
        is_encoder_decoder: whether the model has two sides.

    Raises:
        SettingsError: if all of them together have too few tokens to decompose.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], rank: int, *, is_encoder_decoder: bool) -> None:
        self._is_encoder_decoder, self._calls = is_encoder_decoder, 0
        self.batches = self._of_enough_tokens([_whole(batch, is_encoder_decoder) for batch in batches], WIDTH * rank)

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
        if self._calls > MOST_FORWARDS:
            raise LabError(
                f"EVA's components still move after {MOST_FORWARDS} batches, {len(self.batches)} of them over and over"
                "; raise gradient_batches"
            )
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

    def _of_enough_tokens(self, batches: list[dict[str, Tensor]], needed: int) -> list[dict[str, Tensor]]:
        """Neighbours joined until each has as many tokens as are needed; what is left goes to the last."""
        groups: list[list[dict[str, Tensor]]] = [[]]
        for batch in batches:
            if groups[-1] and self._tokens(groups[-1]) >= needed:
                groups.append([])
            groups[-1].append(batch)
        if len(groups) > 1 and self._tokens(groups[-1]) < needed:
            groups[-2:] = [groups[-2] + groups[-1]]
        if (tokens := self._tokens(groups[0])) < needed:
            raise SettingsError(
                f"EVA looks at the tokens of a target, and {len(batches)} micro-batches have {tokens} of them, fewer "
                f"than {WIDTH} times rank; raise gradient_batches, or lower rank"
            )
        return [_joined(group, self._is_encoder_decoder) for group in groups]

    def _tokens(self, batches: list[dict[str, Tensor]]) -> int:
        """Tokens that count, on the side that has fewer."""
        masks = [[int(mask.sum()) for mask in self._masks(batch)] for batch in batches]
        return min(sum(side) for side in zip(*masks, strict=True))

    def _masks(self, batch: dict[str, Any]) -> list[Tensor]:
        there, labelled = batch["attention_mask"].bool(), batch["labels"] != IGNORED
        return [there, labelled] if self._is_encoder_decoder else [there & labelled]


def _whole(batch: dict[str, Any], is_encoder_decoder: bool) -> dict[str, Tensor]:
    """The batch with a label for each column of a causal model's input, and all logits."""
    labels = batch["labels"]
    if not is_encoder_decoder:
        labels = F.pad(labels, (batch["input_ids"].shape[1] - labels.shape[1], 0), value=IGNORED)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


def _joined(batches: list[dict[str, Tensor]], is_encoder_decoder: bool) -> dict[str, Tensor]:
    """One batch of the rows of several; the two sides of an encoder-decoder differ in length, to be told apart."""
    joined = {}
    for key in batches[0]:
        width, filler = max(batch[key].shape[1] for batch in batches), IGNORED if key == "labels" else 0
        joined[key] = torch.cat([F.pad(each[key], (0, width - each[key].shape[1]), value=filler) for each in batches])
    if is_encoder_decoder and joined["labels"].shape == joined["input_ids"].shape:
        joined["labels"] = F.pad(joined["labels"], (0, 1), value=IGNORED)
    return joined
