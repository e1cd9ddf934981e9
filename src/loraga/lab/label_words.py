"""Classification by label words: the class is the label whose token is the likeliest where the target begins.

labels --as the target is encoded--> one token each --logits there--> normalised probabilities
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import SettingsError
from .examples import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .prompts import Prompted
    from .recipe import Recipe


@dataclass(frozen=True)
class LabelWords:
    """Labels as tokens.

    Attributes:
        labels: the words.
        tokens: the token of each, with the space or mark before it that it has as a target.
        offset: which token of a target the label is; not 0 where a chat template opens the turn with marks of its own.
    """

    labels: tuple[str, ...]
    tokens: tuple[int, ...]
    offset: int

    def probabilities(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The labels' probabilities, normalised over the labels (arXiv 2407.05000, section 4.1).

        Args:
            logits: (B, T, vocabulary).
            labels: the token ids that they predict, (B, T), -100 outside the targets.

        Returns:
            Probabilities, (B, number of labels).
        """
        first = (labels != IGNORED).int().argmax(dim=1) + self.offset  # (B,)
        rows = first.new_tensor(range(len(first)))
        return logits[rows, first][:, list(self.tokens)].softmax(dim=1)


def label_words(tokenizer: Any, prompted: Prompted, recipe: Recipe) -> LabelWords:
    """Finds the token of each label, as the target of a row is encoded.

    Args:
        tokenizer: the model's.
        prompted: any row; its target is a label.
        recipe: names the labels.

    Returns:
        The labels as tokens.

    Raises:
        SettingsError: if a label is more than one token, or two are the same one.
    """
    target = prompted.segments[-1].text
    before, _, after = target.partition(prompted.target)
    if not prompted.from_template:
        before, after = "", ""
    found: dict[int, str] = {}
    head = _ids(tokenizer, before)
    for label in recipe.labels or ():
        text = target.replace(prompted.target, label, 1)
        ids, tail = _ids(tokenizer, text), _ids(tokenizer, after)
        own = ids[len(head) : len(ids) - len(tail)]
        if (*head, *own, *tail) != ids or len(own) != 1:
            raise SettingsError(
                f"labels: the word {label} is {len(own)} tokens here ({_shown(tokenizer, own)}), and the class is told "
                "by one; choose a word that is one token of this tokenizer"
            )
        if own[0] in found:
            raise SettingsError(
                f"labels: {found[own[0]]} and {label} are the same token here ({_shown(tokenizer, own)}); choose other "
                "words"
            )
        found[own[0]] = label
    return LabelWords(tuple(found.values()), tuple(found), len(head))


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


def _shown(tokenizer: Any, ids: Sequence[int]) -> str:
    return ", ".join(tokenizer.convert_ids_to_tokens(list(ids))) or "none"
