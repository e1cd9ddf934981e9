import re
import sys
from dataclasses import replace
from itertools import islice

import pytest

from loraga.lab.gym_task import BLOCK, GymTask, Item

TASK = GymTask(
    name="sums",
    module="arithmetic.chain_sum",
    dataset="ChainSumDataset",
    settings_class="ChainSumConfig",
    settings={"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
)
FEW = replace(TASK, settings={**TASK.settings, "min_digits": 1, "max_digits": 1})


def first(count, task=TASK, seed=0):
    return list(islice(task.items(seed), count))


def test_the_same_seed_gives_the_same_items_and_another_seed_others():
    assert first(50, seed=3) == first(50, seed=3)
    assert len(set(first(50, seed=3)) & set(first(50, seed=4))) < 5


def test_items_do_not_depend_on_how_many_are_taken():
    assert first(BLOCK + 100)[:50] == first(50)


def test_questions_all_differ_beyond_one_block():
    items = first(2 * BLOCK)

    assert len({item.question for item in items}) == len(items) == 2 * BLOCK


def test_a_task_with_few_questions_ends_when_a_block_brings_no_new_one():
    items = list(FEW.items(0))

    # two numbers of one digit (1 to 9) and one of two signs
    assert 100 < len(items) <= 200
    assert len({item.question for item in items}) == len(items)


def test_answers_are_right():
    for item in first(200):
        a, sign, b = re.search(r"(\d+) ([+-]) (\d+) =", item.question).groups()
        assert int(item.answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_the_settings_reach_the_task():
    for item in first(100):
        assert all(10 <= int(number) <= 99 for number in re.findall(r"\d+", item.question))
    assert all(int(number) < 10 for item in first(50, FEW) for number in re.findall(r"\d+", item.question))


def test_there_is_no_space_around_a_question_or_an_answer():
    for item in first(20):
        assert isinstance(item, Item)
        assert (item.question, item.answer) == (item.question.strip(), item.answer.strip())


def test_a_setting_that_the_task_does_not_have_is_refused():
    with pytest.raises(TypeError, match="colour"):
        first(1, replace(TASK, settings={"colour": "red"}))


def test_nothing_of_the_whole_gym_stays_imported():
    first(1)

    assert not [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]
