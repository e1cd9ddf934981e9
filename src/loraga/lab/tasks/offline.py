"""Tasks that need no network: their rows are made by reasoning-gym, and a row is at most 64 tokens long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import DataError
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
KINDS = ("sum", "negative", "positive")


def with_kind(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row with its `problem` and as `kind` its place in KINDS; None where a difference is nothing."""
    problem = str(row["question"]).rpartition(":")[2].replace("=", "").strip()
    try:
        result = float(row["answer"])
    except ValueError as cause:
        raise DataError(f"has {row['answer']!r} in column answer, which is no number") from cause
    if "+" in problem:
        return {**row, "problem": problem, "kind": KINDS.index("sum")}
    return None if result == 0 else {**row, "problem": problem, "kind": KINDS.index("negative") + int(result > 0)}


CHAIN_SUM = Task(
    "Chain sum",
    "sums and differences of two numbers of two digits",
    SOURCE,
    {**DATA, "prompt": "{question}\n", "target": "answer", "metric": "final_number", "max_new_tokens": 8},
    train_columns=("question", "answer"),
    test_columns=("question", "answer"),
)
SUM_OR_SIGN = Task(
    "Sum or sign",
    "whether a problem with two numbers of two digits is a sum, or a difference below or above nothing",
    SOURCE,
    {
        **DATA,
        "prompt": "Sum, negative or positive? {problem}\n",
        "target": "kind",
        "labels": list(KINDS),
        "metric": "label_word",
    },
    train_columns=("question", "answer"),
    test_columns=("question", "answer"),
    train_row=with_kind,
    test_row=with_kind,
)
