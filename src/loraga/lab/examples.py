"""Text as tensors: rows are padded on the right, and logits are computed only where a label needs one.

    columns:      0 .............. T-K | T-K+1 ............ T-1        (B rows)
    input_ids     prompt               |  target  end  pad             (B, T)
    labels                        -100 |  target  end  -100            (B, K), the last K columns, like the logits

Where the vocabulary is large, leaving out the prompts' logits saves a fifth of a step.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import torch

from .errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from .prompts import Prompted
    from .recipe import Recipe

IGNORED = -100
TOKENISED_AT_ONCE = 1000  # texts: a fast tokenizer keeps far more than the ids until a call ends

Ids = tuple[int, ...]
Parts = tuple[Ids, ...]  # of one row


@dataclass(frozen=True)
class Example:
    """One row as token ids.

    Attributes:
        input_ids: of the whole row (causal), or of its prompt (encoder-decoder).
        labels: of a causal model, as long as input_ids, -100 outside the targets; else the target.
        prompt_ids: what the last target is generated from.
        prompted: the text; where turns were cut off, without them.
    """

    input_ids: Ids
    labels: Ids
    prompt_ids: Ids
    prompted: Prompted


@dataclass(frozen=True)
class Encoded:
    """The rows that are left, in order, and how many were cut or dropped for their length."""

    examples: tuple[Example, ...]
    cut: int
    dropped: int


def encode_all(
    tokenizer: Any, prompted: Sequence[Prompted], recipe: Recipe, name: str, is_encoder_decoder: bool = False
) -> Encoded:
    """Turns rows of text into token ids.

    Args:
        tokenizer: the model's.
        prompted: the rows.
        recipe: says how many tokens a row may have, and what happens to a longer one.
        name: the data that the rows come from, for messages.
        is_encoder_decoder: whether prompt and target are two sequences.

    Returns:
        The examples.

    Raises:
        DataError: if a row has no room for its target, has no prompt, or is too long with too_long: error; if none is
            left; or if the tokenizer has no end token where one is needed.
    """
    split, cut_off, join = (_pairs, _cut_pair, _joined_pair) if is_encoder_decoder else (_parts, _cut_row, _joined_row)
    limit = recipe.sequence_length
    examples: list[Example] = []
    cut = dropped = 0
    rows = zip(prompted, split(tokenizer, prompted), strict=True)
    for position, (text, parts) in enumerate(rows, start=1):
        where = f"row {text.row or position} of {name}"
        example = join(text, parts)
        length = max(len(example.input_ids), len(example.labels))
        if not example.prompt_ids:
            raise DataError(f"{where} has no prompt: not one token to generate from")
        if length <= limit:
            examples.append(example)
        elif recipe.too_long == "drop":
            dropped += 1
        elif recipe.too_long == "error":
            raise DataError(
                f"{where} has {length} tokens, more than sequence_length: {limit}; raise that, or write too_long: cut "
                "or drop"
            )
        else:
            examples.append(join(*cut_off(text, parts, limit, where)))
            cut += 1
    if dropped and not examples:
        raise DataError(f"every row of {name} has more tokens than sequence_length: {limit}; raise it")
    return Encoded(tuple(examples), cut, dropped)


def _parts(tokenizer: Any, prompted: Sequence[Prompted]) -> Iterator[Parts]:
    """The ids of each row's segments, which are tokenised one by one: a prompt is alone when it is generated from."""
    leading = leading_special_tokens(tokenizer)
    ids = _tokenised(tokenizer, [segment.text for text in prompted for segment in text.segments])
    for text in prompted:
        parts = [next(ids) for _ in text.segments]
        if not text.from_template:
            if parts[0][: len(leading)] != leading:
                parts[0] = leading + parts[0]
            for index, segment in enumerate(text.segments):
                if segment.is_target:
                    parts[index] = _ended(parts[index], tokenizer)
        yield tuple(parts)


def _pairs(tokenizer: Any, prompted: Sequence[Prompted]) -> Iterator[Parts]:
    """The ids of each row's prompt and of its last target."""
    prompts = _tokenised(tokenizer, [text.prompt for text in prompted], add_special_tokens=True)
    targets = _tokenised(tokenizer, [text.segments[-1].text for text in prompted])
    for prompt, target in zip(prompts, targets, strict=True):
        yield prompt, _ended(target, tokenizer)


def _joined_row(text: Prompted, parts: Parts) -> Example:
    labels = [
        part if segment.is_target else (IGNORED,) * len(part)
        for segment, part in zip(text.segments, parts, strict=True)
    ]
    return Example(_chained(parts), _chained(labels), _chained(parts[:-1]), text)


def _joined_pair(text: Prompted, parts: Parts) -> Example:
    return Example(parts[0], parts[1], parts[0], text)


def _cut_row(text: Prompted, parts: Parts, limit: int, where: str) -> tuple[Prompted, Parts]:
    """Cuts a row inside the last target that begins before the limit; later turns are gone from its text too."""
    starts = list(accumulate(map(len, parts), initial=0))
    targets = [index for index, segment in enumerate(text.segments) if segment.is_target]
    inside = [index for index in targets if starts[index] < limit]
    if not inside:
        raise DataError(_no_room(where, starts[targets[0]], limit))
    last = inside[-1]
    shorter = parts[last][: limit - starts[last]]
    return replace(text, segments=text.segments[: last + 1]), (*parts[:last], shorter)


def _cut_pair(text: Prompted, parts: Parts, limit: int, where: str) -> tuple[Prompted, Parts]:
    prompt, target = parts
    if len(prompt) > limit:
        raise DataError(_no_room(where, len(prompt), limit))
    return text, (prompt, target[:limit])


def _chained(parts: Iterable[Ids]) -> Ids:
    return tuple(chain.from_iterable(parts))


def _no_room(where: str, length: int, limit: int) -> str:
    return (
        f"{where} has a prompt of {length} tokens, which does not leave its target room in sequence_length: {limit}; "
        "raise that, or write too_long: drop"
    )


def _tokenised(tokenizer: Any, texts: Sequence[str], add_special_tokens: bool = False) -> Iterator[Ids]:
    for start in range(0, len(texts), TOKENISED_AT_ONCE):
        some = list(texts[start : start + TOKENISED_AT_ONCE])
        # not verbose: a long row is dealt with here, by sequence_length
        yield from map(tuple, tokenizer(some, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])


def _ended(target: Ids, tokenizer: Any) -> Ids:
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError("the tokenizer has no end token, so an answer would never end; set its eos_token")
    return target if target[-1:] == (end,) else (*target, end)


def leading_special_tokens(tokenizer: Any) -> Ids:
    """The special tokens that a tokenizer puts before a text, such as BOS; those it puts after it are left out."""
    plain, whole = (tuple(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    starts = range(len(whole) - len(plain) + 1)
    return next((whole[:start] for start in starts if whole[start : start + len(plain)] == plain), ())


def padding(tokenizer: Any) -> int:
    """The token id to pad with: the tokenizer's own, or its end token, which the mask hides.

    Args:
        tokenizer: the model's.

    Returns:
        The id.

    Raises:
        DataError: if it has neither.
    """
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    raise DataError("the tokenizer has no padding token and no end token; set its pad_token")


def takes_logits_to_keep(model: Any) -> bool:
    """Whether a model can compute the logits of its last columns only; an adapter around it makes no difference."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


@dataclass(frozen=True)
class Collator:
    """Pads examples into one batch that the model takes as keywords.

    Attributes:
        pad: the token id to pad with.
        is_encoder_decoder: whether prompt and target are two sequences.
        keeps_logits: whether the model's forward takes logits_to_keep.
    """

    pad: int
    is_encoder_decoder: bool
    keeps_logits: bool

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Pads B examples on the right, where padding moves no position.

        Args:
            examples: at least one.

        Returns:
            input_ids and attention_mask (B, T), and labels: of an encoder-decoder (B, longest target); of a causal
            model (B, T), or, if it keeps logits, (B, K) for the last K columns beside logits_to_keep, K.
        """
        input_ids = _padded([each.input_ids for each in examples], self.pad)
        labels = _padded([each.labels for each in examples], IGNORED)
        batch = {"input_ids": input_ids, "attention_mask": _mask([len(each.input_ids) for each in examples])}
        if self.is_encoder_decoder or not self.keeps_logits:
            return {**batch, "labels": labels}
        # one column more than hold labels: the column before a label predicts it
        kept = min(input_ids.shape[1], input_ids.shape[1] - _unlabelled(labels) + 1)
        return {**batch, "labels": labels[:, -kept:], "logits_to_keep": kept}


def collator_for(tokenizer: Any, model: Any) -> Collator:
    """How a model takes its batches: one that can leaves out the logits that no target needs."""
    return Collator(padding(tokenizer), bool(model.config.is_encoder_decoder), takes_logits_to_keep(model))


def prompt_batch(examples: Sequence[Example], pad: int, is_encoder_decoder: bool = False) -> dict[str, Tensor]:
    """Pads prompts into one batch to generate from.

    Args:
        examples: B of them.
        pad: the token id to pad with.
        is_encoder_decoder: whether prompts are padded on the right, for an encoder; else on the left, so that all
            answers begin in one column.

    Returns:
        input_ids and attention_mask, (B, longest prompt).
    """
    prompts = [each.prompt_ids for each in examples]
    lengths = [len(each) for each in prompts]
    if is_encoder_decoder:
        return {"input_ids": _padded(prompts, pad), "attention_mask": _mask(lengths)}
    backwards = _padded([each[::-1] for each in prompts], pad)
    return {"input_ids": backwards.flip(1), "attention_mask": _mask(lengths).flip(1)}


def on_device(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its tensors where the model is."""
    return {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}


def _padded(rows: Sequence[Ids], filler: int) -> Tensor:
    """Rows of different lengths as one tensor, (B, longest)."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.long)


def _mask(lengths: Sequence[int]) -> Tensor:
    """1 in the first columns of a row, as many as its length; (B, longest)."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def _unlabelled(labels: Tensor) -> int:
    """Columns at the left of a batch's labels (B, T) in which no row has one."""
    labelled = (labels != IGNORED).any(dim=0).nonzero()
    return int(labelled[0]) if len(labelled) else labels.shape[1]
