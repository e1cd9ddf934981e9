"""Tests that Code-Feedback's answers end with their code, and that HumanEval's problems become the authors' request."""

from __future__ import annotations

import pytest

from loraga.lab.errors import RecipeError
from loraga.lab.metrics import METRICS, pass_at
from loraga.lab.programs import confined
from loraga.lab.prompts import make_prompted
from loraga.lab.recipe_check import check
from loraga.lab.recipe_file import Written
from loraga.lab.tasks import TASKS
from loraga.lab.tasks.code import of_code_feedback, of_humaneval, up_to_the_code
from tests.humaneval import needs_lock
from tests.lab.programs.test_humaneval import PROMPT, TEST, WHOLE

CODE = "```python\nprint(1)\n```"
ROW = {"task_id": "HumanEval/x", "prompt": PROMPT, "canonical_solution": "    return 2 * poly(xs, x)\n", "test": TEST,
       "entry_point": "solve"}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (CODE, CODE),
        (f"So:\n\n{CODE}\n\nIt prints 1.", f"So:\n\n{CODE}"),
        (f"{CODE} and more", CODE),
        (f"{CODE}\nThis prints\n```\n1\n```\nwhich is right.", CODE),
        (f"Use `print` so:\n{CODE}\nDone.", f"Use `print` so:\n{CODE}"),
        ("1. First:\n   ```c\n   f();\n   ```\n2. Then", "1. First:\n   ```c\n   f();\n   ```"),
        ("```python\nprint(1)```\nIt prints.", "```python\nprint(1)```"),
        ("Here: ```python\nprint(1)\n```\nIt prints.", "Here: ```python\nprint(1)\n```"),
        ("No code at all.", None),
        ("Use `print(1)`.", None),
        ("Inline ```print(1)``` only.", None),
        ("```python\nprint(1)  # cut off", None),
        ("", None),
    ],
)
def test_an_answer_ends_with_its_code_and_one_without_is_dropped(answer, kept):
    assert up_to_the_code(answer) == kept
    row = of_code_feedback({"query": "Print 1.", "answer": answer, "lang": "python"})
    assert row == (
        None
        if kept is None
        else {"query": "Print 1.", "instruction": "Print 1.", "opening": "", "answer": kept, "lang": "python"}
    )


def recipe_of(**keys):
    base = {"model": "tiny", "task": "code_feedback_humaneval", "run_generated_code": True, **keys}
    return check({key: Written(value, "recipe.yaml") for key, value in base.items()})


@needs_lock
def test_rows_are_asked_as_the_authors_ask(tokenizer):
    recipe = recipe_of()
    trained = of_code_feedback({"query": "Print 1.", "answer": f"{CODE}\nIt prints."})
    (row,) = make_prompted([trained], recipe, tokenizer, "rows")
    assert row.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nPrint 1.\n\n### Response:\n"
    )
    assert row.target == CODE
    (asked,) = make_prompted([of_humaneval(ROW)], recipe, tokenizer, "rows", judged=True)
    assert asked.prompt.endswith(f"code:\n```python\n{PROMPT}\n```\n\n### Response:\n```python\n")
    assert (
        asked.prompt.count("Complete the following Python code:\nNotes: respond with the entire complete function") == 1
    )
    assert asked.columns == ROW


@needs_lock
@pytest.mark.parametrize("opened", [True, False])
def test_an_answer_is_judged_by_running_it_with_the_code_block_that_the_prompt_began(opened, tokenizer):
    judge = METRICS["humaneval"].judge
    prompt = "{instruction}\n{opening}" if opened else "{instruction}\n"
    (row,) = make_prompted([of_humaneval(ROW)], recipe_of(prompt=prompt), tokenizer, "rows", judged=True)
    ending = f"{WHOLE}\n```\nwhich doubles. ``` and {{"
    answer = ending if opened else f"```python\n{ending}"
    assert (judge(answer, row).score, judge(answer, row).note) == (1, "passed")
    assert (judge(row.target, row).score, judge("", row).score) == (1, 0)
    assert judge(answer.replace("2 *", "3 *"), row).note == "failed"
    assert judge("    import os\n    os.fork()\n", row).note == "forbidden"


def test_pass_at_k_is_a_mean_over_the_problems():
    lines = [
        {"scores": [1, 0, 0], "score": 1 / 3},
        {"scores": [1, 1, 1], "score": 1},
        {"scores": [0, 0, 0], "score": 0},
    ]
    assert pass_at(lines) == pytest.approx({"pass@1": 4 / 9, "pass@2": (2 / 3 + 1) / 3, "pass@3": 2 / 3})
    assert pass_at([{"score": 1.0}, {"score": 0.0}]) == {"pass@1": 0.5}


def test_nothing_is_run_that_was_not_allowed():
    with pytest.raises(RecipeError) as caught:  # noqa: PT011
        recipe_of(run_generated_code=False)
    (problem,) = caught.value.problems
    assert problem.startswith("task: code_feedback_humaneval: metric humaneval runs the Python programs that the model")
    for limit in ("5 s of processor time", "20 s of real time", "1024 MiB of memory", "no files", "no network"):
        assert limit in problem
    assert problem.endswith("write run_generated_code: true to allow that")


def test_leave_to_run_code_means_nothing_with_another_metric():
    with pytest.raises(RecipeError, match="run_generated_code means nothing with metric: exact_match, which runs none"):
        recipe_of(metric="exact_match")


def test_a_machine_that_holds_nothing_back_is_refused_with_the_recipe(monkeypatch):
    monkeypatch.setattr(confined, "MACHINES", {})
    with pytest.raises(RecipeError, match="nothing holds them back here: that takes 64-bit Linux on"):
        recipe_of()


def test_the_task_has_the_papers_settings():
    keys = TASKS["code_feedback_humaneval"].keys
    assert (keys["rows"], keys["sequence_length"], keys["held_out"]) == (100_000, 1024, "openai/openai_humaneval")
