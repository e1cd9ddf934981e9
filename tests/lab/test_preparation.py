import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from loraga.lab.errors import DataError, SettingsError
from loraga.lab.preparation import prepare

from .conftest import ROWS, byte_tokenizer, tiny_model, tiny_t5

LENGTHS = {row["prompt"]: len(row["prompt"]) + len(row["target"]) + 1 for row in ROWS}  # one token a byte, and the end


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def without_weights(tmp_path):
    """A model's folder that has everything but its weights."""
    tiny_model().config.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def said(console):
    return console.file.getvalue()


def text(example, ids):
    return byte_tokenizer().decode(list(ids), skip_special_tokens=False)


def prompts(examples):
    return [each.prompted.prompt for each in examples]


def test_every_row_becomes_an_example_of_its_prompt_and_target(recipe, console):
    made = prepare(recipe(), console)

    assert sorted(prompts(made.train)) == sorted(row["prompt"] for row in ROWS)
    assert made.held_out == ()
    assert said(console) == ""
    for each in made.train:
        target = dict(map(dict.values, ROWS))[each.prompted.prompt]
        assert text(each, each.input_ids) == each.prompted.prompt + target + "<|im_end|>"
        assert text(each, [label for label in each.labels if label != -100]) == target + "<|im_end|>"
        assert text(each, each.prompt_ids) == each.prompted.prompt
    assert made.tokenizer("7")["input_ids"] == byte_tokenizer()("7")["input_ids"]


def test_held_out_rows_are_others_than_those_trained_on_and_stay_whatever_is_trained_on(recipe, console):
    many = prepare(recipe(held_out_rows=5), console)
    few = prepare(recipe(held_out_rows=5, rows=3), console)

    assert (len(many.train), len(many.held_out)) == (19, 5)
    assert sorted(prompts(many.train) + prompts(many.held_out)) == sorted(row["prompt"] for row in ROWS)
    assert prompts(few.held_out) == prompts(many.held_out)
    assert len(few.train) == 3
    assert set(prompts(few.train)) <= set(prompts(many.train))


def test_the_checksum_is_that_of_tokens_and_labels(recipe, console):
    made = prepare(recipe(held_out_rows=5), console)
    first, *others = made.train
    assert prepare(recipe(held_out_rows=5), console).digest == made.digest
    changes = [
        {"input_ids": (*first.input_ids[:-1], first.input_ids[-1] - 1)},
        {"labels": (*first.labels[:-1], -100)},
    ]
    for change in changes:
        assert replace(made, train=(replace(first, **change), *others)).digest != made.digest
    assert replace(made, held_out=made.held_out[:-1]).digest != made.digest
    assert replace(made, train=(*others, first)).digest != made.digest


def test_held_out_data_of_its_own_are_read_beside_the_others(recipe, console, tmp_path):
    file = tmp_path / "others.jsonl"
    file.write_text(json.dumps({"prompt": "9 + 9 =", "target": "18"}) + "\n")

    made = prepare(recipe(held_out=str(file)), console)

    assert (len(made.train), prompts(made.held_out)) == (24, ["9 + 9 ="])


def test_what_is_cut_is_told_for_each_part_by_the_name_of_its_data(recipe, console, rows_file):
    limit = 12
    made = prepare(recipe(sequence_length=limit, held_out_rows=6), console)

    cut = [sum(LENGTHS[prompt] > limit for prompt in prompts(part)) for part in (made.train, made.held_out)]
    assert min(cut) > 0
    assert said(console).splitlines() == [
        f"{rows_file}: of 18 rows {cut[0]} were cut and 0 dropped at sequence_length 12",
        f"{rows_file}: of 6 rows {cut[1]} were cut and 0 dropped at sequence_length 12",
    ]
    assert max(len(each.input_ids) for each in made.train) == limit


def test_what_is_dropped_is_told_and_gone(recipe, console, rows_file):
    short = [prompt for prompt, length in LENGTHS.items() if length <= 12]

    made = prepare(recipe(sequence_length=12, too_long="drop"), console)

    assert sorted(prompts(made.train)) == sorted(short)
    assert said(console) == f"{rows_file}: of 24 rows 0 were cut and {24 - len(short)} dropped at sequence_length 12\n"


def test_an_encoder_decoders_prompt_and_target_are_two_sequences(recipe, console, tiny_t5_folder):
    made = prepare(recipe(model=str(tiny_t5_folder)), console)

    each = made.train[0]
    assert text(each, each.input_ids) == each.prompted.prompt
    assert text(each, each.labels) == each.prompted.target + "<|im_end|>"
    data = made.data_for(tiny_t5())
    assert set(data.collate(made.train[:2])) == {"input_ids", "attention_mask", "labels"}


def test_a_model_that_can_leave_out_logits_gets_batches_that_say_so(recipe, console):
    made = prepare(recipe(held_out_rows=2), console)

    data = made.data_for(tiny_model())

    batch = data.collate(made.train[:3])
    assert batch["labels"].shape == (3, batch["logits_to_keep"])
    assert torch.equal(batch["attention_mask"].sum(dim=1), torch.tensor([len(e.input_ids) for e in made.train[:3]]))
    assert (data.train, data.held_out) == (made.train, made.held_out)


# --- what is wrong with the data is known before any weight is read


def test_data_are_prepared_without_the_models_weights(recipe, console, without_weights):
    assert len(prepare(recipe(model=without_weights), console).train) == 24


WRONG = {
    "no such column": (
        {"target": "taget"},
        DataError,
        r"row \d+ of .*rows\.jsonl has no column taget .*did you mean target",
    ),
    "held out all": ({"held_out_rows": 24}, DataError, "holds 24 rows, and held_out_rows: 24 leaves none to train on"),
    "too long": ({"sequence_length": 12, "too_long": "error"}, DataError, r"row \d+ of .* has 1\d tokens, more than"),
    "no room": ({"sequence_length": 4}, DataError, r"row \d+ of .* has a prompt of \d+ tokens"),
    "nothing left": ({"sequence_length": 4, "too_long": "drop"}, DataError, "every row of .* raise it"),
    "no template": ({"template": "chat"}, SettingsError, "template: chat needs a tokenizer with a chat template"),
    "single brace": ({"prompt": "Q: {prompt"}, SettingsError, "has a brace that encloses no column"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_the_data_is_found_without_the_models_weights(recipe, console, without_weights, wrong):
    keys, error, message = WRONG[wrong]

    with pytest.raises(error, match=message):
        prepare(recipe(model=without_weights, **keys), console)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no row"),
        ("{'prompt': 1}\n", "line 1 is no JSON"),
        ('{"prompt": "1 + 1 =", "target": " "}\n', "row 1 of .* has no target"),
        ('{"prompt": "", "target": "2"}\n', "row 1 of .* has no prompt"),
    ],
)
def test_a_bad_file_is_found_without_the_models_weights(recipe, console, without_weights, tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_text(content)

    with pytest.raises(DataError, match=message):
        prepare(recipe(model=without_weights, data=str(tmp_path / "bad.jsonl")), console)


def test_a_mistake_in_the_held_out_data_names_them(recipe, console, without_weights, tmp_path):
    (tmp_path / "others.jsonl").write_text('{"prompt": "1", "target": "1"}\n{"prompt": "1"}\n')

    with pytest.raises(DataError, match=r"row 2 of .*others\.jsonl has no column target"):
        prepare(recipe(model=without_weights, held_out=str(tmp_path / "others.jsonl")), console)


# --- parts that share no row


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_for_validation_are_encoded_and_said_to_the_trainer(recipe, console):
    made = prepare(recipe(held_out_rows=5, validation_rows=4), console)

    assert [len(part) for part in (made.train, made.validation, made.held_out)] == [15, 4, 5]
    assert len({*prompts(made.train), *prompts(made.validation), *prompts(made.held_out)}) == 24
    assert made.data_for(tiny_model()).held_out == made.validation
    assert replace(made, validation=made.validation[:-1]).digest != made.digest


def test_training_rows_that_the_held_out_data_hold_too_are_an_error_with_their_number_and_the_first(
    recipe, console, tmp_path
):
    other = write(tmp_path / "others.jsonl", [{"prompt": "9 + 9 =", "target": "18"}, *ROWS[7:10], ROWS[3]])

    with pytest.raises(
        DataError, match=r"^4 rows of .*rows\.jsonl are in .*others\.jsonl too, .*\(the first is row 4, there row 5\)"
    ):
        prepare(recipe(held_out=other), console)


def test_a_row_is_the_same_only_if_prompt_and_target_are(recipe, console, tmp_path):
    other = write(tmp_path / "others.jsonl", [{**ROWS[0], "target": "0"}, {**ROWS[1], "prompt": "0"}])

    assert len(prepare(recipe(held_out=other), console).train) == 24


def test_overlap_drop_leaves_them_out_of_training_and_validation(recipe, console, tmp_path):
    other = write(tmp_path / "others.jsonl", ROWS[4:10])

    made = prepare(recipe(held_out=other, overlap="drop", validation_rows=12), console)

    assert (len(made.train) + len(made.validation), len(made.held_out)) == (18, 6)
    assert not {*prompts(made.train), *prompts(made.validation)} & set(prompts(made.held_out))
    assert said(console).endswith("rows.jsonl: 6 rows are left out of training, since they are evaluated on too\n")


def test_a_row_that_stands_in_the_data_twice_is_not_both_trained_and_evaluated_on(recipe, console, tmp_path):
    data = write(tmp_path / "twice.jsonl", [*ROWS[:8], *ROWS[:8]])

    made = prepare(recipe(data=data, held_out_rows=3, validation_rows=3), console)

    parts = [set(prompts(part)) for part in (made.train, made.validation, made.held_out)]
    assert len(parts[0] | parts[1] | parts[2]) == sum(map(len, parts))
    assert "rows are left out of training" in said(console)


def test_data_that_are_all_evaluated_on_are_refused(recipe, console, tmp_path):
    other = write(tmp_path / "others.jsonl", ROWS)

    with pytest.raises(DataError, match=r"every row of .* is evaluated on too, so none is left to train on"):
        prepare(recipe(held_out=other, overlap="drop"), console)


# --- label words and tasks


def test_a_label_word_of_more_tokens_is_refused_before_any_weight_is_read(recipe, console, without_weights, tmp_path):
    data = write(tmp_path / "labels.jsonl", [{"prompt": f"{n} is", "target": n % 2} for n in range(8)])
    judged = {"model": without_weights, "data": data, "held_out_rows": 2, "metric": "label_word"}

    with pytest.raises(SettingsError, match=r"the word odd is 3 tokens here \(o, d, d\)"):
        prepare(recipe(**judged, labels=["e", "odd"]), console)
    assert {each.prompted.target for each in prepare(recipe(**judged, labels=["e", "o"]), console).train} == {"e", "o"}


def test_rows_that_a_task_drops_are_told(recipe, console, tmp_path):
    rows = [{"sentence": f"film {n}", "label": n % 2 if n % 5 else -1} for n in range(20)]
    data = write(tmp_path / "films.jsonl", rows)

    made = prepare(recipe(data=data, task="sst2", prompt="sentence", target="label"), console)

    assert len(made.train) == 16
    assert said(console) == f"{data}: task sst2 dropped 4 rows\n"
