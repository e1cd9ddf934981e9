"""Tasks that need no network: their rows are made by reasoning-gym, and a row is at most 64 tokens long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCE = "Stojanovski et al. 2025, arXiv 2505.24760"
DATA = {
    "data": "reasoning_gym:arithmetic.chain_sum",
    "data_options": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    "rows": 320,
    "held_out_rows": 100,
    "sequence_length": 64,
    "template": "none",
}


def with_sign(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A difference, as the column `difference`, with its sign as `label`; None of a sum, or where it is nothing."""
    _, _, written = str(row["question"]).rpartition(":")
    difference = written.replace("=", "").strip()
    value = float(row["answer"])
    if "-" not in difference or value == 0:
        return None
    return {**row, "difference": difference, "label": int(value > 0)}


CHAIN_SUM = Task(
    "chain sum",
    "sums and differences of two numbers of two digits",
    SOURCE,
    {
        **DATA,
        "prompt": "{question}\n",
        "target": "answer",
        "metric": "final_number",
        "max_new_tokens": 8,
    },
    train_columns=("question", "answer"),
    test_columns=("question", "answer"),
)
SIGN = Task(
    "sign",
    "whether a difference of two numbers of two digits is negative or positive",
    SOURCE,
    {
        **DATA,
        "prompt": "Is the result negative or positive? {difference}\n",
        "target": "label",
        "labels": ["negative", "positive"],
        "metric": "label_word",
    },
    train_columns=("question", "answer"),
    test_columns=("question", "answer"),
    train_row=with_sign,
    test_row=with_sign,
)
