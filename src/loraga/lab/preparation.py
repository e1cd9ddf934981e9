"""Everything a run needs beside its model: the tokenizer and the encoded rows, before a model is loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraga import GradientFileError, describe_gradients

from .base_model import BaseModel
from .errors import DataError
from .examples import Example, collator_for, encode_all
from .prompts import make_prompted
from .rows import read_rows
from .training import TrainingData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from .recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """What a run needs beside its model: the tokenizer and the encoded rows."""

    tokenizer: Any
    train: Sequence[Example]
    held_out: Sequence[Example]

    @property
    def digest(self) -> str:
        """A checksum of all rows, as they are encoded."""
        return digest_of((self.train, self.held_out))

    def data_for(self, model: Any) -> TrainingData:
        """The rows as the model takes them."""
        return TrainingData(self.train, self.held_out, collator_for(self.tokenizer, model))


def digest_of(rows: Any) -> str:
    """A checksum of encoded rows.

    Args:
        rows: nested sequences of examples.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    if isinstance(rows, Example):
        return hashlib.sha256(repr((rows.input_ids, rows.labels)).encode()).hexdigest()
    return hashlib.sha256("".join(digest_of(each) for each in rows).encode()).hexdigest()


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Reads and encodes the data; whatever is wrong with them is found before a model is loaded.

    Args:
        recipe: names model and data.
        console: told what was cut or dropped.

    Returns:
        Tokenizer and examples.
    """
    if recipe.gradients is not None:
        try:
            describe_gradients(recipe.gradients)
        except GradientFileError as cause:
            raise DataError(f"gradients: {cause}") from cause
    base = BaseModel.of(recipe)
    tokenizer = base.load_tokenizer()
    rows = read_rows(recipe)

    def encoded(part: Sequence[Any], name: str) -> Sequence[Example]:
        if not part:
            return ()
        made = encode_all(
            tokenizer, make_prompted(part, recipe, tokenizer, name), recipe, name, base.is_encoder_decoder
        )
        if made.cut or made.dropped:
            console.print(
                f"{name}: of {len(part)} rows {made.cut} were cut and {made.dropped} dropped at sequence_length "
                f"{recipe.sequence_length}",
                highlight=False,
                markup=False,
            )
        return made.examples

    return Prepared(tokenizer, encoded(rows.train, rows.train_name), encoded(rows.held_out, rows.held_out_name))
