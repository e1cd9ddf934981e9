import re
import sys
from dataclasses import replace

import pytest

from loraga.lab.errors import LabError, SettingsError
from loraga.lab.experiment import TASK
from loraga.lab.task import BLOCK, SplitSizes, split

SIZES = SplitSizes(test=30, validation=20, rate=5, gradient=10, train=60)
FEW = replace(TASK, name="few", settings=TASK.settings | {"min_digits": 1, "max_digits": 1})


def questions(splits):
    return [[item.question for item in part] for part in vars(splits).values()]


def test_splits_are_disjoint_and_as_large_as_asked_for():
    parts = questions(split(TASK, SIZES, seed=0))

    assert [len(part) for part in parts] == list(vars(SIZES).values())
    assert len({question for part in parts for question in part}) == sum(map(len, parts))


def test_same_seed_gives_the_same_items_and_another_seed_others():
    assert split(TASK, SIZES, seed=3) == split(TASK, SIZES, seed=3)
    assert split(TASK, SIZES, seed=3).test != split(TASK, SIZES, seed=4).test


def test_held_out_items_do_not_depend_on_the_length_of_training():
    short, long = split(TASK, SIZES, seed=0), split(TASK, replace(SIZES, train=200), seed=0)

    assert (short.test, short.validation, short.gradient) == (long.test, long.validation, long.gradient)
    assert long.train[:60] == short.train


def test_items_go_on_beyond_one_block_without_repeating():
    splits = split(TASK, replace(SIZES, train=2 * BLOCK), seed=0)

    assert len({item.question for item in splits.train}) == 2 * BLOCK


def test_a_task_that_runs_out_of_questions_is_refused():
    with pytest.raises(LabError, match="few has too few different questions"):
        split(FEW, replace(SIZES, train=1000), seed=0)


def test_a_negative_seed_is_refused():
    with pytest.raises(SettingsError, match="seed is -1"):
        split(TASK, SIZES, seed=-1)


def test_the_demos_answers_are_right():
    for item in split(TASK, SIZES, seed=0).test:
        a, sign, b = re.search(r"(\d+) ([+-]) (\d+) =", item.question).groups()
        assert int(item.answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_training_and_held_out_items_are_alike():
    # numbers of one digit make 200 questions only: the held-out items, drawn first, would take nearly all of them
    for part in questions(split(TASK, replace(SIZES, train=1000), seed=0)):
        assert all(10 <= int(number) <= 99 for question in part for number in re.findall(r"\d+", question))


def test_only_the_tasks_own_module_was_imported_and_nothing_of_it_stays():
    split(TASK, SIZES, seed=0)

    assert not [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]
