"""Everything a run needs beside its model: the tokenizer and the encoded rows, before a model is loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraga import GradientFileError, describe_gradients

from .base_model import BaseModel
from .errors import DataError
from .examples import Example, collator_for, encode_all
from .label_words import label_words
from .metrics import METRICS
from .programs.program import require_lock
from .prompts import make_prompted
from .rows import read_rows
from .training import TrainingData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from .prompts import Prompted
    from .recipe import Recipe
    from .rows import Rows


@dataclass(frozen=True)
class Prepared:
    """What a run needs beside its model: the tokenizer and the encoded rows, of which no two parts share a text."""

    tokenizer: Any
    train: Sequence[Example]
    held_out: Sequence[Example]
    validation: Sequence[Example] = ()

    @property
    def digest(self) -> str:
        """A checksum of all rows, as they are encoded."""
        return digest_of((self.train, self.held_out, self.validation))

    def data_for(self, model: Any) -> TrainingData:
        """The rows as the model takes them."""
        return TrainingData(self.train, self.validation or self.held_out, collator_for(self.tokenizer, model))


def digest_of(rows: Any) -> str:
    """A checksum of encoded rows.

    Args:
        rows: nested sequences of examples.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    if isinstance(rows, Example):
        more = sorted(rows.prompted.columns.items())
        return hashlib.sha256(repr((rows.input_ids, rows.labels, *more)).encode()).hexdigest()
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
    if METRICS[recipe.metric].runs_code:
        require_lock()
    base = BaseModel.of(recipe)
    tokenizer = base.load_tokenizer()
    rows = read_rows(recipe)
    for name, count in rows.dropped.items():
        _say(console, f"{name}: task {recipe.task} dropped {count} rows")

    def written(part: Sequence[Mapping[str, Any]], name: str, judged: bool) -> list[Prompted]:
        return make_prompted(part, recipe, tokenizer, name, judged=judged)

    held_out = written(rows.held_out, rows.held_out_name, judged=True)
    validation = written(rows.validation, rows.train_name, judged=recipe.validation_metric)
    train = written(rows.train, rows.train_name, judged=False)
    if held_out or validation:
        train, validation = _apart(train, validation, held_out, recipe, rows, console)
    if _is_judged_by_label_words(recipe):
        label_words(tokenizer, train[0], recipe)

    def encoded(part: Sequence[Prompted], name: str) -> Sequence[Example]:
        if not part:
            return ()
        made = encode_all(tokenizer, part, recipe, name, base.is_encoder_decoder)
        if made.cut or made.dropped:
            _say(
                console,
                f"{name}: of {len(part)} rows {made.cut} were cut and {made.dropped} dropped at sequence_length "
                f"{recipe.sequence_length}",
            )
        return made.examples

    return Prepared(
        tokenizer,
        encoded(train, rows.train_name),
        encoded(held_out, rows.held_out_name),
        encoded(validation, rows.train_name),
    )


def _apart(
    train: Sequence[Prompted],
    validation: Sequence[Prompted],
    held_out: Sequence[Prompted],
    recipe: Recipe,
    rows: Rows,
    console: Console,
) -> tuple[list[Prompted], list[Prompted]]:
    """Rows to train on and rows for validation, without those whose text is held out, and without each other's."""
    places = {_text(each): each.row for each in held_out}
    twice = [each for each in (*validation, *train) if _text(each) in places]
    if twice and recipe.held_out is not None and recipe.overlap == "error":
        first = min(twice, key=lambda each: each.row)
        raise DataError(
            f"{len(twice)} rows of {rows.train_name} are in {rows.held_out_name} too, with the same prompt and target "
            f"(the first is row {first.row}, there row {places[_text(first)]}); remove them, or write overlap: drop, "
            "which leaves them out of training"
        )
    kept = [each for each in validation if _text(each) not in places]
    places |= {_text(each): each.row for each in kept}
    others = [each for each in train if _text(each) not in places]
    left_out = len(validation) - len(kept) + len(train) - len(others)
    if left_out:
        _say(console, f"{rows.train_name}: {left_out} rows are left out of training, since they are evaluated on too")
    if not others:
        raise DataError(f"every row of {rows.train_name} is evaluated on too, so none is left to train on")
    return others, kept


def _text(prompted: Prompted) -> tuple[str, str]:
    return prompted.prompt, prompted.target


def _is_judged_by_label_words(recipe: Recipe) -> bool:
    return METRICS[recipe.metric].judged_by == "label_words"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
