import json
import re
import sys
from dataclasses import replace

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraga.lab.errors import DataError, SettingsError
from loraga.lab.recipe import Recipe
from loraga.lab.rows import read_rows
from loraga.lab.tasks import TASKS

CHAIN_SUM = "reasoning_gym:arithmetic.chain_sum"
DIGITS = {"min_terms": 2, "max_terms": 2, "max_digits": 1}  # 200 different questions
ROWS = [{"question": f"{number}?", "answer": number} for number in range(40)]


def recipe(data, **settings):
    return Recipe(model="any", data=str(data), **settings)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def numbers(rows):
    return [row.number for row in rows]


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- files


def test_json_lines_come_in_their_order_with_their_numbers(lines):
    rows = read_rows(recipe(lines))

    assert list(rows.train) == ROWS
    assert numbers(rows.train) == list(range(1, 41))
    assert (list(rows.held_out), rows.train_name) == ([], str(lines))


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": "x"}, {"a": "y"}]',
        '\n[\n  {"a": "x"},\n  {"a": "y"}\n]\n',
        '{"a": "x"}\n\n{"a": "y"}',
        '\ufeff{"a": "x"}\r\n{"a": "y"}\r\n',
    ],
    ids=["list", "list over lines", "lines", "lines of Windows"],
)
def test_a_json_file_is_a_list_or_lines(tmp_path, text):
    assert read_rows(recipe(write(tmp_path, "a.json", text))).train == [{"a": "x"}, {"a": "y"}]


def test_a_line_separator_of_unicode_inside_a_text_ends_no_line(tmp_path):
    path = write(tmp_path, "a.jsonl", json.dumps({"a": "one\u2028two\x85"}, ensure_ascii=False))

    assert read_rows(recipe(path)).train == [{"a": "one\u2028two\x85"}]


def test_a_broken_line_is_named(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": 1,\n')

    with pytest.raises(DataError, match=r"a.jsonl, line 3 is no JSON \(.*column 9\); write one object a line"):
        read_rows(recipe(path))


def test_a_broken_list_is_named_with_the_line_in_it(tmp_path):
    with pytest.raises(DataError, match=r"a.json is no JSON \(.*line 2, column"):
        read_rows(recipe(write(tmp_path, "a.json", '[{"a": 1},\n{"a" 1}]')))


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [("a.jsonl", '{"a": 1}\n["a"]\n', "line 2"), ("a.json", '[{"a": 1}, "b"]', "object 2")],
)
def test_a_row_that_is_no_object_is_named(tmp_path, name, text, place):
    with pytest.raises(DataError, match=f"{name}, {place} is no object"):
        read_rows(recipe(write(tmp_path, name, text)))


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"a": "ü"}'.encode("latin-1"))

    with pytest.raises(DataError, match=r"a.jsonl cannot be read: it is no UTF-8 text"):
        read_rows(recipe(tmp_path / "a.jsonl"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"b.jsonl is not there"):
        read_rows(recipe(tmp_path / "b.jsonl"))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.jsonl holds no row"):
        read_rows(recipe(write(tmp_path, "a.jsonl", "\n")))


def test_options_of_a_json_file_are_refused(lines):
    with pytest.raises(SettingsError, match="data_options mean nothing with"):
        read_rows(recipe(lines, data_options={"field": "data"}))


def test_a_csv_files_values_are_the_texts_that_stand_there(tmp_path):
    path = write(tmp_path, "a.csv", 'q,a\nx,007\ny,3\n"one, two",2.50\nz,NA\nlast,\n')

    rows = read_rows(recipe(path))

    assert [row["a"] for row in rows.train] == ["007", "3", "2.50", "NA", ""]
    assert rows.train[2]["q"] == "one, two"


def test_options_of_load_dataset_reach_a_csv_file_and_the_one_that_is_held_out(tmp_path):
    train, test = write(tmp_path, "a.csv", "q;a\nx;1\n"), write(tmp_path, "b.csv", "q;a\ny;2\n")

    rows = read_rows(recipe(train, held_out=str(test), data_options={"sep": ";"}))

    assert (rows.train, rows.held_out) == ([{"q": "x", "a": "1"}], [{"q": "y", "a": "2"}])


def test_options_of_one_kind_of_data_do_not_reach_another(tmp_path, lines):
    train = write(tmp_path, "a.csv", "q;a\nx;1\n")

    rows = read_rows(recipe(train, held_out=str(lines), data_options={"sep": ";"}))

    assert list(rows.held_out) == ROWS


def test_an_unknown_option_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a.csv cannot be read; check .*data_options \(.*'seperator'"):
        read_rows(recipe(write(tmp_path, "a.csv", "q,a\nx,1\n"), data_options={"seperator": ";"}))


def test_a_parquet_files_rows_keep_their_types(tmp_path):
    made = [{"chat": [{"role": "user", "content": "hi"}], "n": 1}, {"chat": [], "n": 2}]
    datasets.Dataset.from_list(made).to_parquet(tmp_path / "a.parquet")

    assert read_rows(recipe(tmp_path / "a.parquet")).train == made


# --- data sets by name


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A data set that load_dataset finds by its name, with two configurations and no network."""
    folder = tmp_path / "named"
    folder.mkdir()
    write(folder, "one.jsonl", '{"a": "one"}\n')
    write(folder, "two.jsonl", '{"a": "two"}\n')
    write(
        folder,
        "README.md",
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: one.jsonl}\n"
        "  - {split: test, path: two.jsonl}\n- config_name: other\n  data_files: two.jsonl\n---\n",
    )
    monkeypatch.chdir(tmp_path)
    return "named"


def test_splits_of_a_named_data_set_are_read_with_the_same_options(named):
    rows = read_rows(recipe(named, held_out=named, data_options={"name": "main"}))

    assert (rows.train, rows.held_out) == ([{"a": "one"}], [{"a": "two"}])
    assert (rows.train_name, rows.held_out_name) == ("named (train)", "named (test)")


def test_held_out_rows_of_a_data_set_are_read_with_options_of_their_own(named):
    kinds = {"data_options": {"name": "main"}, "held_out_options": {"name": "other"}, "held_out_split": "train"}

    rows = read_rows(recipe(named, held_out=named, **kinds))

    assert (rows.train, rows.held_out) == ([{"a": "one"}], [{"a": "two"}])


def test_a_missing_configuration_is_answered_with_those_there_are(named):
    with pytest.raises(DataError, match=r"^named cannot be read; check split and data_options \(.*main.*other.*\)$"):
        read_rows(recipe(named))


def test_an_unknown_split_is_answered_with_those_there_are(named):
    with pytest.raises(DataError, match=r"^named cannot be read; .*\"dev\".*train.*test.*\)$"):
        read_rows(recipe(named, data_options={"name": "main"}, split="dev"))


def test_a_data_set_on_an_unreachable_hub_is_answered_with_the_remedy(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    with pytest.raises(
        DataError, match=r"^the data set no-one/nothing is not on this machine, .* name a local \.jsonl, "
    ):
        read_rows(recipe("no-one/nothing"))


@pytest.mark.parametrize("key", ["path", "split", "streaming", "trust_remote_code"])
def test_options_that_are_keys_of_the_recipe_are_refused(named, key):
    with pytest.raises(SettingsError, match=f"data_options has {key}: "):
        read_rows(recipe(named, data_options={key: "x"}))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(DataError, match=r"pip install 'loraga\[lab\]'"):
        read_rows(recipe("no-one/nothing"))


# --- which rows


@given(seed=st.integers(0, 9), held_out=st.integers(1, 20), few=st.integers(1, 10), more=st.integers(0, 30))
def test_a_longer_draw_begins_with_the_shorter_and_the_held_out_rows_stay(lines, seed, held_out, few, more):
    short = read_rows(recipe(lines, rows=few, held_out_rows=held_out, seed=seed))
    long = read_rows(recipe(lines, rows=few + more, held_out_rows=held_out, seed=seed))

    assert short.held_out == long.held_out
    assert short.train == long.train[: len(short.train)]
    assert (len(short.train), len(short.held_out)) == (few, held_out)
    drawn = numbers(long.train) + numbers(long.held_out)
    assert len(set(drawn)) == len(drawn) == min(40, held_out + few + more)
    assert all(ROWS[row.number - 1] == row for row in [*long.train, *long.held_out])


def test_the_draw_is_that_of_data_seed_or_else_of_seed(lines):
    def drawn(**seeds):
        return numbers(read_rows(recipe(lines, rows=20, **seeds)).train)

    assert drawn(seed=3) == drawn(seed=3) == drawn(seed=8, data_seed=3)
    assert drawn(seed=3) != drawn(seed=8) == drawn(seed=3, data_seed=8)


def test_the_rows_that_are_not_held_out_keep_their_order(lines):
    rows = read_rows(recipe(lines, held_out_rows=15))

    assert numbers(rows.train) == sorted(set(range(1, 41)) - set(numbers(rows.held_out)))
    assert numbers(rows.held_out) != sorted(numbers(rows.held_out))


def test_more_rows_than_there_are_means_all(lines):
    assert sorted(numbers(read_rows(recipe(lines, rows=1000)).train)) == list(range(1, 41))


def test_data_of_its_own_is_held_out_in_order_or_as_a_draw(lines, tmp_path):
    train = write(tmp_path, "train.jsonl", '{"question": "x", "answer": 1}\n')

    every, some = (read_rows(recipe(train, held_out=str(lines), held_out_rows=count)) for count in (None, 12))

    assert (every.held_out, every.held_out_name, len(every.train)) == (ROWS, str(lines), 1)
    assert len(set(numbers(some.held_out))) == 12
    assert numbers(some.held_out) != sorted(numbers(some.held_out))


def test_holding_out_every_row_is_refused(lines):
    with pytest.raises(DataError, match="holds 40 rows, and held_out_rows: 40 leaves none to train on"):
        read_rows(recipe(lines, held_out_rows=40))


# --- reasoning-gym


def test_a_tasks_rows_have_right_answers_and_no_question_twice():
    rows = read_rows(recipe(CHAIN_SUM, rows=100, held_out_rows=60, data_options=DIGITS))

    both = [*rows.train, *rows.held_out]
    assert len({row["question"] for row in both}) == 160
    for row in both:
        a, sign, b, _ = row["question"].split(": ")[1].split()
        assert int(row["answer"]) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    assert rows.train_name == rows.held_out_name == CHAIN_SUM


def test_held_out_rows_of_a_task_do_not_depend_on_how_many_are_trained_on():
    short, long = (read_rows(recipe(CHAIN_SUM, rows=count, held_out_rows=30)) for count in (10, 500))

    assert short.held_out == long.held_out
    assert short.train == long.train[:10]


def test_another_seed_makes_other_rows_of_a_task():
    one, same, other = (read_rows(recipe(CHAIN_SUM, rows=20, data_seed=seed)) for seed in (1, 1, 2))

    assert one == same != other


def test_a_task_with_too_few_different_questions_is_refused():
    with pytest.raises(
        DataError, match="has too few different questions: 200 for the 250 of held_out_rows, validation"
    ):
        read_rows(recipe(CHAIN_SUM, rows=150, held_out_rows=100, data_options=DIGITS))


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("chain_sum", "did you mean reasoning_gym:arithmetic.chain_sum?"),
        ("arithmetic.chain_sums", "did you mean reasoning_gym:arithmetic.chain_sum?"),
        ("algebra.gcd", "did you mean reasoning_gym:arithmetic.gcd?"),
        ("", "a task is named like"),
        ("factory", "a task is named like"),
    ],
)
def test_an_unknown_task_is_answered_with_the_nearest(task, hint):
    with pytest.raises(SettingsError, match=re.escape(f"reasoning-gym has no task {task}; {hint}")):
        read_rows(recipe(f"reasoning_gym:{task}", rows=2))


def test_a_module_that_holds_no_task_is_refused():
    with pytest.raises(SettingsError, match=r"reasoning_gym:coaching.registry is no task: .* not nothing of the kind"):
        read_rows(recipe("reasoning_gym:coaching.registry", rows=2))


def test_a_task_that_needs_the_whole_package_is_refused():
    with pytest.raises(DataError, match="acre cannot be loaded: it needs the whole package"):
        read_rows(recipe("reasoning_gym:induction.acre.acre", rows=2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_term": 2}, "has no setting min_term; did you mean min_terms?"),
        ({"xyz": 2}, "has no setting xyz; it has min_terms, max_terms"),
        ({"min_terms": 9}, "refuses data_options: max_terms must be >= min_terms"),
        ({"min_terms": "two"}, "refuses data_options: '>' not supported"),
        ({"size": 9}, "data_options has size: write rows and held_out_rows"),
        ({"seed": 9}, "data_options has seed: write data_seed"),
    ],
)
def test_wrong_settings_of_a_task_are_answered(options, words):
    with pytest.raises(SettingsError, match=re.escape(words)):
        read_rows(recipe(CHAIN_SUM, rows=2, data_options=options))


def test_a_task_without_a_number_of_rows_is_refused():
    with pytest.raises(SettingsError, match="rows is missing"):
        read_rows(recipe(CHAIN_SUM))


def test_a_task_that_is_only_held_out_is_refused(lines):
    with pytest.raises(SettingsError, match="held_out is a reasoning-gym task"):
        read_rows(recipe(lines, held_out=CHAIN_SUM))


# --- rows for validation, and rows that a task drops


@given(st.integers(0, 10), st.integers(1, 10), st.integers(1, 10), st.integers(1, 10), st.integers(0, 20))
def test_validation_rows_are_neither_trained_on_nor_held_out_and_stay(lines, held_out, validation, few, more, seed):
    counts = {"held_out_rows": held_out or None, "validation_rows": validation, "seed": seed}
    short, long = (read_rows(recipe(lines, rows=rows, **counts)) for rows in (few, few + more))

    assert short.validation == long.validation
    assert (len(short.held_out), len(short.validation)) == (held_out, validation)
    parts = [*numbers(long.train), *numbers(long.validation), *numbers(long.held_out)]
    assert len(set(parts)) == len(parts)
    assert long.held_out == read_rows(recipe(lines, held_out_rows=held_out or None, seed=seed)).held_out


def test_validation_rows_come_out_of_the_training_data_where_others_are_held_out(lines, tmp_path):
    other = write(tmp_path, "other.jsonl", '{"question": "?", "answer": 1}\n' * 3)

    rows = read_rows(recipe(lines, held_out=str(other), validation_rows=15))

    assert (len(rows.held_out), len(rows.validation), len(rows.train)) == (3, 15, 25)
    assert sorted(numbers(rows.train) + numbers(rows.validation)) == list(range(1, 41))


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"held_out_rows": 20, "validation_rows": 20}, "held_out_rows: 20 and validation_rows: 20 leaves none"),
        ({"validation_rows": 40}, "40 rows, and validation_rows: 40 leaves none to train on"),
    ],
)
def test_more_validation_rows_than_there_are_rows_are_refused(lines, counts, said):
    with pytest.raises(DataError, match=said):
        read_rows(recipe(lines, **counts))


def test_validation_rows_of_a_gym_task_are_others(own_cache):
    rows = read_rows(recipe(CHAIN_SUM, rows=50, validation_rows=40, held_out_rows=30, data_options=DIGITS))

    assert [len(part) for part in (rows.train, rows.validation, rows.held_out)] == [50, 40, 30]
    assert len({row["question"] for row in (*rows.train, *rows.validation, *rows.held_out)}) == 120


MIXED = [
    {"query": f"{number}?", "response": str(number), "type": "GSM_Rephrased" if number % 3 else "MATH_AnsAug"}
    for number in range(60)
]


@pytest.fixture
def mixed(tmp_path):
    return write(tmp_path, "mixed.jsonl", "".join(json.dumps(row) + "\n" for row in MIXED))


def test_rows_that_a_task_drops_do_not_count_and_are_counted(mixed):
    few = read_rows(recipe(mixed, task="metamath_gsm8k", rows=25, held_out_rows=5, validation_rows=4))
    every = read_rows(recipe(mixed, task="metamath_gsm8k", held_out_rows=5))

    assert [len(part) for part in (few.train, few.validation, few.held_out)] == [25, 4, 5]
    assert (len(every.train) + 5, every.dropped) == (40, {str(mixed): 20})
    assert 0 < few.dropped[str(mixed)] <= 20
    assert all(row["question"] == row["query"] == MIXED[row.number - 1]["query"] for row in every.train)
    assert {row.number % 3 for row in [*few.train, *few.held_out]} == {0, 2}


def test_data_of_which_a_task_keeps_no_row_are_refused(tmp_path):
    path = write(tmp_path, "math.jsonl", json.dumps(MIXED[0]) + "\n")

    with pytest.raises(DataError, match=r"math.jsonl holds no row to train on that task: metamath_gsm8k keeps"):
        read_rows(recipe(path, task="metamath_gsm8k"))


def test_held_out_data_of_which_a_task_keeps_no_row_are_refused(tmp_path):
    train = write(tmp_path, "train.jsonl", '{"sentence": "good", "label": 1}\n')
    test = write(tmp_path, "test.jsonl", '{"sentence": "good", "label": -1}\n')

    with pytest.raises(DataError, match=r"test.jsonl holds no row that task: sst2 keeps"):
        read_rows(recipe(train, held_out=str(test), task="sst2"))


def test_a_gym_task_of_which_rows_are_dropped_makes_more_of_them(monkeypatch):
    def of_even_ones(row):
        return row if int(row["answer"]) % 2 == 0 else None

    monkeypatch.setitem(TASKS, "chain_sum", replace(TASKS["chain_sum"], train_row=of_even_ones))

    rows = read_rows(recipe(CHAIN_SUM, task="chain_sum", rows=40, held_out_rows=10))

    assert [len(rows.train), len(rows.held_out)] == [40, 10]
    assert all(int(row["answer"]) % 2 == 0 for row in [*rows.train, *rows.held_out])
