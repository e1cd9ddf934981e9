"""Code: trained on Code-Feedback, tested on HumanEval (arXiv 2407.05000, section 4.2).

The prompts are those of the authors' code: Alpaca's, and for a problem of HumanEval the request for the whole function,
with the response's code block already begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..programs.code_blocks import FENCE, code_blocks
from ..programs.humaneval import COLUMNS
from .instruction import ALPACA
from .task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST = (
    "Complete the following Python code:\n"
    "Notes: respond with the entire complete function definition\n"
    "do not add any comments, be as concise in your code as possible\n"
    "use only built-in libraries, assume no additional imports other than those provided (if any)\n"
    "use `    ` (4 spaces) for each level of indentation\n\n"
    "code:\n" + FENCE + "python\n{prompt}\n" + FENCE
)


def up_to_the_code(answer: str) -> str | None:
    """An answer without the text after its first code block.

    The paper removes "explanations after code blocks"; the authors' code keeps what stands up to the end of the first.

    Args:
        answer: Markdown.

    Returns:
        Its beginning, to the end of the first code block; None if it has no code block, or none that ends.
    """
    end = next((block.end for block in code_blocks(answer)), None)
    return None if end is None else answer[:end]


def of_code_feedback(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A row whose answer ends with its code; None of one without code."""
    answer = up_to_the_code(str(row["answer"]))
    return None if answer is None else {**row, "instruction": row["query"], "opening": "", "answer": answer}


def of_humaneval(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A problem as an instruction, and the function with its reference solution as the answer."""
    return {
        **row,
        "instruction": REQUEST.format(prompt=row["prompt"]),
        "opening": f"{FENCE}python\n",
        "answer": f"{row['prompt']}{row['canonical_solution']}{FENCE}",
    }


CODE_FEEDBACK_HUMANEVAL = Task(
    "Code-Feedback, HumanEval",
    "programs: 100,000 instructions with their code, tested on 164 functions that are run with their tests",
    "Zheng et al. 2024, arXiv 2402.14658; Chen et al. 2021, arXiv 2107.03374",
    {
        "data": "m-a-p/CodeFeedback-Filtered-Instruction",
        "split": "train",
        "rows": 100_000,
        "held_out": "openai/openai_humaneval",
        "held_out_split": "test",
        "prompt": f"{ALPACA}\n{{opening}}",
        "target": "answer",
        "template": "none",
        "metric": "humaneval",
        "max_new_tokens": 512,
        "sequence_length": 1024,
        "too_long": "drop",
    },
    train_columns=("query", "answer"),
    test_columns=COLUMNS,
    train_row=of_code_feedback,
    test_row=of_humaneval,
    train_rows=156_526,
    test_rows=164,
)
