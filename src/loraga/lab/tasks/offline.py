"""Tasks that need no network: their rows are made by reasoning-gym, and a row is at most 64 tokens long."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCE = "Stojanovski et al. 2025, arXiv 2505.24760"
SHARED = {"rows": 320, "held_out_rows": 100, "sequence_length": 64, "template": "none", "target": "answer"}


def with_parity(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the number that its question ends with, and as its answer whether that is even (0) or odd (1)."""
    found = re.search(r"(\d+)\D*$", str(row["question"]))
    if found is None:
        raise DataError("has no number in column question")
    return {**row, "number": found[1], "answer": int(found[1]) % 2}


CHAIN_SUM = Task(
    "Chain sum",
    "sums and differences of two numbers of two digits",
    SOURCE,
    {
        "data": "reasoning_gym:arithmetic.chain_sum",
        "data_options": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
        **SHARED,
        "prompt": "{question}\n",
        "metric": "final_number",
        "max_new_tokens": 8,
    },
    train_columns=("question", "answer"),
    test_columns=("question", "answer"),
)
PARITY = Task(
    "Parity",
    "whether a number of up to four digits is even or odd",
    SOURCE,
    {
        "data": "reasoning_gym:arithmetic.count_bits",
        "data_options": {"max_n": 9999},
        **SHARED,
        "prompt": "Is {number} even or odd?\n",
        "labels": ["even", "odd"],
        "metric": "label_word",
    },
    train_columns=("question",),
    test_columns=("question",),
    train_row=with_parity,
    test_row=with_parity,
)
