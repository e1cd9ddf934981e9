"""Chat: trained on WizardLM without refusals, tested on MT-Bench's first turns (arXiv 2407.05000, section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..judging.mt_bench import Question
from .instruction import ALPACA
from .task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

REFUSALS = ("As an AI", "Sorry")  # how an answer begins that is left out


def without_refusal(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A row whose answer does not refuse; None of another, or of one without an answer."""
    answer = str(row["output"]).strip()
    return None if not answer or answer.startswith(REFUSALS) else row


def first_turn(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A question's first turn as an instruction, in FastChat's columns, and no answer: a judge rates what is said."""
    question = Question.of(row)
    return {"reference": None, **question.line(), "instruction": question.turn, "output": ""}


WIZARDLM_MT_BENCH = Task(
    "WizardLM, MT-Bench",
    "instructions of every kind: 52,000 with answers, tested on the first turns of 80 questions, which a judge rates",
    "Xu et al. 2023, arXiv 2304.12244; Zheng et al. 2023, arXiv 2306.05685",
    {
        "data": "WizardLMTeam/WizardLM_evol_instruct_70k",
        "split": "train",
        "rows": 52_000,
        "held_out": "HuggingFaceH4/mt_bench_prompts",
        "held_out_split": "train",
        "prompt": f"{ALPACA}\n",
        "target": "output",
        "template": "none",
        "metric": "mt_bench",
        "max_new_tokens": 1024,
        "sequence_length": 1024,
        "too_long": "drop",
    },
    train_columns=("instruction", "output"),
    test_columns=("category",),  # and either FastChat's names of the others or the hub's: `Question.of` reads both
    train_row=without_refusal,
    test_row=first_turn,
    train_rows=70_000,
    test_rows=80,
)
