"""Every task with rows of its columns in files, as somebody without the hub has them."""

import io
import json

import pytest
from rich.console import Console

from loraga.lab.errors import DataError
from loraga.lab.metrics import METRICS
from loraga.lab.preparation import prepare
from loraga.lab.recipe_check import check
from loraga.lab.recipe_file import Written
from loraga.lab.tasks import TASKS
from loraga.lab.tasks.classification import labelled
from loraga.lab.tasks.math import of_metamath
from loraga.lab.tasks.offline import KINDS, with_kind

VALUES = {"label": lambda number: number % 2, "type": lambda number: "GSM_AnsAug"}
SHORT = {"labels": ["a", "b", "c"], "sequence_length": 2000}  # one byte each, as the tiny tokenizer has them
UNSEEN = (
    "label",
    "type",
    "test",
    "entry_point",
    "task_id",
    "turns",
)  # columns that are in no prompt or target as they are
WRITTEN_ANEW = ("sum_or_sign", "wizardlm_mt_bench")  # whose rows have tests of their own


def rows_of(columns, first, count):
    """Rows with a value of its own in every column."""
    return [
        {
            column: VALUES.get(column, lambda number, column=column: f"{column}: 5 - {number} =")(number)
            for column in columns
        }
        for number in range(first, first + count)
    ]


def resolved(**keys):
    if METRICS[TASKS[keys["task"]].keys["metric"]].runs_code:
        keys["run_generated_code"] = True
    return check({key: Written(value, "a test") for key, value in keys.items()})


def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def files(tmp_path):
    """Writes rows to train and to evaluate on, and gives the recipe keys that name them."""

    def write(train, test):
        for name, rows in (("train", train), ("test", test)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"data": str(tmp_path / "train.jsonl"), "held_out": str(tmp_path / "test.jsonl")}

    return write


def rows_for(name):
    task = TASKS[name]
    train, test = rows_of(task.train_columns, 0, 6), rows_of(task.test_columns, 100, 4)
    if name == "code_feedback_humaneval":
        train = [{**row, "answer": f"```python\nprint({number})\n```"} for number, row in enumerate(train)]
    if name == "wizardlm_mt_bench":
        test = [{"question_id": n, "category": "writing", "turns": [f"question {n}", "more"]} for n in range(4)]
    if name == "sum_or_sign":
        train, test = (
            [{"question": f"what: {n} - {n + below} =", "answer": -below} for n in range(count)]
            for below, count in ((10, 6), (20, 4))
        )
    return train, test


@pytest.mark.parametrize("name", TASKS)
def test_local_files_of_the_same_columns_are_what_a_task_trains_and_evaluates_on(name, files, tiny_folder):
    train, test = rows_for(name)
    keys = {"model": str(tiny_folder), "task": name, **files(train, test), **SHORT, "held_out_rows": 3}
    if "labels" not in TASKS[name].keys:
        del keys["labels"]

    made = prepare(resolved(**keys), console())

    assert (len(made.train), len(made.held_out)) == (len(train), 3)
    for part, rows in ((made.train, train), (made.held_out, test)):
        for each in part:
            row = rows[each.prompted.row - 1]
            shown = each.prompted.prompt + each.prompted.target
            texts = [str(row[column]) for column in row if column not in UNSEEN]
            assert name in WRITTEN_ANEW or all(text in shown for text in texts), shown
    assert made.train[0].prompted.target


@pytest.mark.parametrize(
    ("name", "part", "column"),
    [
        (name, part, column)
        for name, task in TASKS.items()
        for part in ("train", "test")
        for column in getattr(task, f"{part}_columns")
    ],
)
def test_a_file_that_lacks_a_column_is_named_with_the_row_and_the_column(name, part, column, files, tiny_folder):
    train, test = rows_for(name)
    (train if part == "train" else test)[1].pop(column)
    recipe = resolved(model=str(tiny_folder), task=name, **files(train, test))

    with pytest.raises(DataError, match=rf"^row 2 of .*{part}\.jsonl has no column {column} \(its columns: "):
        prepare(recipe, console())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_is_and_names_a_metric_that_there_is(name):
    task = TASKS[name]

    assert task.title
    assert task.what[0].islower()
    assert task.source
    assert METRICS[task.keys["metric"]].judged_by != "nothing"
    assert resolved(model="m", task=name).metric == task.keys["metric"]


@pytest.mark.parametrize("label", [-1, "-1", " -1"])
def test_a_row_whose_class_is_secret_is_dropped(label):
    assert labelled({"label": label}) is None
    assert labelled({"label": 1}) == {"label": 1}


def test_metamath_is_what_was_made_from_gsm8k():
    row = {"query": "2 + 3?", "response": "The answer is: 5", "type": "GSM_SV"}

    assert of_metamath(row) == {**row, "question": "2 + 3?", "answer": "The answer is: 5"}
    assert [of_metamath({**row, "type": other}) for other in ("MATH_SV", "math", None)] == [None] * 3


@pytest.mark.parametrize(
    ("question", "answer", "problem", "kind"),
    [
        ("State the answer: 23 + 57 =", "80", "23 + 57", "sum"),
        ("State the answer: 23 - 57 =", "-34", "23 - 57", "negative"),
        ("State the answer: 57 - 23 =", "34", "57 - 23", "positive"),
    ],
)
def test_the_kind_is_that_of_the_operator_or_of_the_result(question, answer, problem, kind):
    row = {"question": question, "answer": answer}

    assert with_kind(row) == {**row, "problem": problem, "kind": KINDS.index(kind)}


def test_a_difference_of_nothing_has_no_sign():
    assert with_kind({"question": "State the answer: 23 - 23 =", "answer": "0"}) is None


def test_an_answer_that_is_no_number_is_refused(files, tiny_folder):
    rows = [{"question": "what: 2 - 3 =", "answer": "one less than nothing"}]

    with pytest.raises(
        DataError, match=r"^row 1 of .*test\.jsonl has 'one less than nothing' in column answer, which is"
    ):
        prepare(resolved(model=str(tiny_folder), task="sum_or_sign", **files(rows, rows)), console())


# --- the offline tasks run by their name alone

OFFLINE = [name for name, task in TASKS.items() if task.keys["data"].startswith("reasoning_gym:")]


@pytest.mark.parametrize("name", OFFLINE)
def test_an_offline_task_needs_no_network_and_its_rows_fit(name, tiny_folder):
    labels = {"labels": ["a", "b", "c"]} if "labels" in TASKS[name].keys else {}

    made = prepare(resolved(model=str(tiny_folder), task=name, sequence_length=128, **labels), console())

    assert (len(made.train), len(made.held_out)) == (320, 100)
    texts = {(each.prompted.prompt, each.prompted.target) for each in (*made.train, *made.held_out)}
    assert len(texts) == 420
    assert all(len(prompt.split()) + len(target) <= 20 for prompt, target in texts)  # of few tokens


def test_about_half_are_sums_and_a_quarter_each_of_the_signs(tiny_folder):
    made = prepare(resolved(model=str(tiny_folder), task="sum_or_sign", labels=["a", "b", "c"]), console())

    said = [each.prompted.target for each in made.train]
    assert [round(4 * said.count(each) / len(said)) for each in "abc"] == [2, 1, 1]
