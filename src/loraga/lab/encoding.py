"""Items as tensors: the prompt padded on the left, the answer on the right, so that all answers begin in one column.

    columns:  0 ........................ P-1 | P ............ P+K-2        (B rows)
              pad pad  prompt of the model   | answer  end  pad
    logits:                              P-1 ............ P+K-2            (K columns, the only ones computed)

The loss falls on the answer and its end only. Nothing else needs logits, and leaving them out saves a fifth of a step
where the vocabulary is large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .task import Item

IGNORED = -100

# The models' chat format without a system message: a short prompt is a short step.
PROMPT = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Encoded:
    """One item as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]  # with the token that ends it


def encode(tokenizer: Any, item: Item) -> Encoded:
    """Turns an item into the token ids of its prompt and of its answer."""
    prompt = tokenizer(PROMPT.format(question=item.question), add_special_tokens=False)["input_ids"]
    answer = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
    return Encoded(tuple(prompt), (*answer, tokenizer.eos_token_id))


def collate(encoded: Sequence[Encoded], pad: int) -> dict[str, Any]:
    """Pads items into one batch that a causal language model takes as keywords.

    Args:
        encoded: B items.
        pad: the token id to pad with.

    Returns:
        input_ids and attention_mask (B, P + K - 1), labels (B, K) for the last K columns, and logits_to_keep, K.
    """
    width = max(len(item.prompt) for item in encoded)  # P
    kept = max(len(item.answer) for item in encoded) + 1  # K: the column before the answer predicts its first token
    input_ids = torch.full((len(encoded), width + kept - 1), pad)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full((len(encoded), kept), IGNORED)
    for row, item in enumerate(encoded):
        start, end = width - len(item.prompt), width + len(item.answer)
        input_ids[row, start:end] = torch.tensor(item.prompt + item.answer)
        attention_mask[row, start:end] = 1
        labels[row, 1 : 1 + len(item.answer)] = torch.tensor(item.answer)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "logits_to_keep": kept}


def prompts_only(encoded: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """Pads prompts into one batch to generate from: input_ids and attention_mask, (B, P)."""
    width = max(len(item.prompt) for item in encoded)
    input_ids = torch.full((len(encoded), width), pad)
    for row, item in enumerate(encoded):
        input_ids[row, width - len(item.prompt) :] = torch.tensor(item.prompt)
    lengths = torch.tensor([len(item.prompt) for item in encoded])
    attention_mask = (torch.arange(width) >= width - lengths[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def batches(tokenizer: Any, items: Sequence[Item], size: int) -> list[dict[str, Any]]:
    """Encodes items and pads them, `size` at a time, in their order."""
    encoded = [encode(tokenizer, item) for item in items]
    pad = padding(tokenizer)
    return [collate(encoded[start : start + size], pad) for start in range(0, len(encoded), size)]


def padding(tokenizer: Any) -> int:
    """The token id to pad with; a tokenizer without one pads with its end token, which the mask hides."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def on_device(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its tensors where the model is."""
    return {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}
