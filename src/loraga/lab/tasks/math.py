"""Grade-school math: trained on MetaMathQA or on GSM8K itself, tested on GSM8K (arXiv 2407.05000, section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

# MetaMath's own prompt (arXiv 2309.12284), for training and for the test
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response: Let's think step by step."
)
PEFT_PROMPT = "Question: {question} Think step by step.\nAnswer:"  # of PEFT's method comparison
FROM_GSM8K = "GSM_"  # how the type of a MetaMathQA row begins that was made from GSM8K's training questions
TEST = {"held_out": "openai/gsm8k", "held_out_options": {"name": "main"}, "held_out_split": "test"}
SHARED = {"target": "answer", "template": "none", "metric": "gsm8k", "max_new_tokens": 512}


def of_metamath(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A row that was made from GSM8K, with GSM8K's names of its columns; None of another."""
    return with_names_of_gsm8k(row) if str(row["type"]).startswith(FROM_GSM8K) else None


def with_names_of_gsm8k(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of MetaMathQA with GSM8K's names of its columns."""
    return {**row, "question": row["query"], "answer": row["response"]}


METAMATH_GSM8K = Task(
    "MetaMathQA, GSM8K",
    "questions of school mathematics: 100,000 rows made from GSM8K's training questions, tested on GSM8K",
    "Yu et al. 2024, arXiv 2309.12284; Cobbe et al. 2021, arXiv 2110.14168",
    {
        "data": "meta-math/MetaMathQA",
        "split": "train",
        "rows": 100_000,
        **TEST,
        "prompt": PROMPT,
        "sequence_length": 1024,
        "too_long": "drop",
        **SHARED,
    },
    train_columns=("query", "response", "type"),
    test_columns=("question", "answer"),
    train_row=of_metamath,
    train_rows=395_000,
    test_rows=1_319,
)
PEFT_METAMATH = Task(
    "MetaMathQA, GSM8K, as PEFT compares methods",
    "questions of mathematics: all of MetaMathQA, tested on GSM8K, with the prompt of PEFT's method comparison",
    "Yu et al. 2024, arXiv 2309.12284; Cobbe et al. 2021, arXiv 2110.14168; huggingface/peft, method_comparison",
    {
        "data": "meta-math/MetaMathQA",
        "split": "train",
        **TEST,
        "prompt": PEFT_PROMPT,
        "sequence_length": 768,
        "too_long": "drop",
        **SHARED,
        "max_new_tokens": 300,
    },
    train_columns=("query", "response"),
    test_columns=("question", "answer"),
    train_row=with_names_of_gsm8k,
    train_rows=395_000,
    test_rows=1_319,
)
GSM8K = Task(
    "GSM8K",
    "questions of school mathematics with worked answers",
    "Cobbe et al. 2021, arXiv 2110.14168",
    {
        "data": "openai/gsm8k",
        "data_options": {"name": "main"},
        "split": "train",
        **TEST,
        "prompt": PROMPT,
        "sequence_length": 1024,
        "too_long": "drop",
        **SHARED,
    },
    train_columns=("question", "answer"),
    test_columns=("question", "answer"),
    train_rows=7_473,
    test_rows=1_319,
)
