"""Every method on every task, on a tiny random model and rows of the tasks' columns: that all of it runs to its report.

`make test` does it on a tiny Llama, `make torture` on a tiny T5 too.
"""

from __future__ import annotations

import json

import pytest

from loraga.lab.comparison.cell_run import carry_out, outcome_of
from loraga.lab.comparison.compare import plan_of, report, take_folder
from loraga.lab.comparison.comparison import load_comparison
from loraga.lab.methods import METHODS
from loraga.lab.metrics import METRICS
from loraga.lab.tasks import TASKS
from tests.humaneval import needs_lock
from tests.pages import ROOT

TOY = ROOT / "recipes" / "offline" / "toy.yaml"

RUNS_CODE = [name for name, task in TASKS.items() if METRICS[task.keys["metric"]].runs_code]
RUN = [pytest.param(name, marks=needs_lock if name in RUNS_CODE else ()) for name in TASKS]

INSTRUCTION = "Write {} in words."
TRAIN = {
    "label": lambda n: n % 2,
    "type": lambda n: "GSM_Rephrased",
    "question": "What is 40 - {} =".format,
    "answer": lambda n: str(40 - n),
    "query": INSTRUCTION.format,
    "response": "The answer is: {}".format,
    "instruction": INSTRUCTION.format,
    "output": "number {}".format,
}
OWN_TRAIN = {"code_feedback_humaneval": {"answer": lambda n: f"```python\nx = {n}\n```\nThat is all."}}
OWN_TEST = {
    "code_feedback_humaneval": {
        "task_id": "HumanEval/{}".format,
        "prompt": lambda n: "def one():\n",
        "canonical_solution": lambda n: "    return 1\n",
        "test": lambda n: "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": lambda n: "one",
    },
    "wizardlm_mt_bench": {
        "question_id": lambda n: 81 + n,
        "category": lambda n: "writing",
        "turns": lambda n: [INSTRUCTION.format(n), "And again."],
    },
}


def rows_for(columns, own, numbers):
    """A row a number, with something in each column."""
    made = {column: TRAIN.get(column, lambda n, column=column: f"{column} {n}") for column in columns} | own
    return [{column: value(number) for column, value in made.items()} for number in numbers]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def done(folder, model, task):
    """The results of a comparison of all methods on a task, carried out in this process."""
    of = TASKS[task]
    words = [
        f"model={model}",
        f"task={task}",
        f"data={write(folder / 'train.jsonl', rows_for(of.train_columns, OWN_TRAIN.get(task, {}), range(8)))}",
        f"held_out={write(folder / 'test.jsonl', rows_for(of.test_columns, OWN_TEST.get(task, {}), range(20, 22)))}",
        f"output_dir={folder / 'toy'}",
        f"methods=[{', '.join(METHODS)}]",
        "sequence_length=1200",  # single bytes
        *(['labels=["a", "b", "c"]'] if "labels" in of.keys else []),
        *(["run_generated_code=true"] if task in RUNS_CODE else []),
    ]
    comparison = load_comparison(TOY, words)
    take_folder(comparison)
    for cell in plan_of(comparison).cells:
        carry_out(cell.recipe, None)
        assert outcome_of(cell.folder).status == "done", outcome_of(cell.folder)
    results = report(comparison, "a test")
    assert (folder / "toy" / "report.html").is_file()
    return results


def require_whole(results, task):
    metric = METRICS[TASKS[task].keys["metric"]]
    assert [run.method for run in results.runs] == list(METHODS)
    for run in results.runs:
        assert run.status == "done"
        assert (run.steps, run.test.rows) == (3, 2)
        assert (run.test.loss is None) == (not metric.has_targets)
        assert (run.test.score is None) == (metric.judged_by == "another_model")  # there is no judge


def test_the_toy_recipe_has_all_methods():
    assert [each.method for each in load_comparison(TOY, ["task=null", "data=d", "prompt=p", "target=t"]).variants] == [
        *METHODS
    ]


@pytest.mark.parametrize("task", RUN)
def test_all_methods_run_on_a_task_to_their_report(task, tmp_path, tiny_folder):
    require_whole(done(tmp_path, tiny_folder, task), task)


# T5's first decoder layer sees the start and the label words alone: fewer inputs than 2r
@pytest.mark.filterwarnings("ignore:layer .* singular direction:UserWarning")
@pytest.mark.torture
@pytest.mark.parametrize("task", RUN)
def test_all_methods_run_on_a_task_with_an_encoder_decoder(task, tmp_path, tiny_t5_folder):
    require_whole(done(tmp_path, tiny_t5_folder, task), task)
