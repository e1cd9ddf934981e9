"""Held-out loss, the part of the answers that is right to the letter, and answers in words.

Greedy decoding writes the right answer exactly when, at each of the answer's tokens and at its end, the right token is
the likeliest one after the right tokens before it. So one forward pass over questions with their answers gives the loss
and the exact-match accuracy of greedy decoding at once; nothing need be generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from .encoding import IGNORED, batches, encode, on_device, padding, prompts_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .task import Item

BATCH = 50  # rows at a time
SPARE_TOKENS = 12  # that an answer in words may be longer than the longest right one


@dataclass(frozen=True)
class Evaluation:
    """How a model does on held-out items.

    Attributes:
        loss: mean over all answer tokens, in nats.
        right: for each item, whether its greedy answer is the right one, and nothing but it.
    """

    loss: float
    right: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        """The part of the items that is right, from 0 to 1."""
        return sum(self.right) / len(self.right)


def evaluate(
    model: Any, tokenizer: Any, items: Sequence[Item], advance: Callable[[float], None] | None = None
) -> Evaluation:
    """Measures a model on items, in eval mode, and puts its mode back.

    Args:
        model: a causal language model, with or without adapters; they are used as they are active.
        tokenizer: the model's.
        items: at least one.
        advance: called with the part of the work that was just done; the parts add up to 1.

    Returns:
        The loss, and which answers are right.
    """
    total, terms = 0.0, 0
    right: list[bool] = []
    parts = batches(tokenizer, items, BATCH)
    for logits, targets in _predictions(model, parts):
        total += cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="sum").item()
        terms += int((targets != IGNORED).sum())
        likeliest = logits.argmax(dim=-1)  # (B, K - 1)
        right += ((likeliest == targets) | (targets == IGNORED)).all(dim=1).tolist()
        if advance is not None:
            advance(1 / len(parts))
    return Evaluation(loss=total / terms, right=tuple(right))


@torch.no_grad()
def _predictions(model: Any, parts: Sequence[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each batch the logits (B, K - 1, vocabulary) and the token ids (B, K - 1) that they should predict."""
    was_training = model.training
    model.eval()
    try:
        for batch in parts:
            batch = on_device(model, batch)
            yield model(**batch).logits[:, :-1].float(), batch["labels"][:, 1:]
    finally:
        model.train(was_training)


@torch.no_grad()
def greedy_answers(model: Any, tokenizer: Any, items: Sequence[Item]) -> list[str]:
    """What a model answers, in words, cut off where it goes on far beyond a right answer's length."""
    encoded = [encode(tokenizer, item) for item in items]
    pad = padding(tokenizer)
    prompts = on_device(model, prompts_only(encoded, pad))
    was_training = model.training
    model.eval()
    try:
        written = model.generate(
            **prompts,
            max_new_tokens=max(len(item.answer) for item in encoded) + SPARE_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )
    finally:
        model.train(was_training)
    new = written[:, prompts["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
