import collections
import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraga.lab.errors import SettingsError
from loraga.lab.evaluation import evaluate, generate, summary, wilson_interval
from loraga.lab.examples import IGNORED, Example, encode_all
from loraga.lab.prompts import make_prompted

from .conftest import ROWS, Told, byte_tokenizer, tiny_model, tiny_t5

END_ID = 257
SETTINGS = {"of": "a test"}
KNOWN, UNSEEN = ROWS[:6], ROWS[18:22]


def encoded(recipe, rows, is_encoder_decoder=False) -> tuple[Example, ...]:
    made = make_prompted(rows, recipe, byte_tokenizer(), "rows.jsonl")
    return encode_all(byte_tokenizer(), made, recipe, "rows.jsonl", is_encoder_decoder).examples


def taught(model, examples, is_encoder_decoder, steps):
    """Trains a model on rows one by one, so that it knows their answers and where these end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        for each in examples:
            inputs, labels = torch.tensor([each.input_ids]), torch.tensor([each.labels])
            model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def causal(recipe):
    return taught(tiny_model(), encoded(recipe(), KNOWN), False, steps=25)


@pytest.fixture(scope="module")
def encoder_decoder(recipe):
    return taught(tiny_t5(), encoded(recipe(), KNOWN, True), True, steps=25)


@pytest.fixture(params=["causal", "encoder-decoder"])
def case(request, recipe, causal, encoder_decoder):
    """(model, known and unseen rows) of either kind."""
    if request.param == "causal":
        return causal, encoded(recipe(), KNOWN + UNSEEN)
    return encoder_decoder, encoded(recipe(), KNOWN + UNSEEN, True)


def measured(model, examples, recipe, file, told=None, settings=SETTINGS):
    return evaluate(model, byte_tokenizer(), examples, recipe, file, settings, told or Told())


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- the loss


def plain_losses(model, examples):
    """(sum of -log p, number) of each row's target tokens in float64: a row at a time, with all its logits."""
    exact, found = copy.deepcopy(model).double().eval(), []
    for each in examples:
        inputs = {"input_ids": torch.tensor([each.input_ids])}
        if model.config.is_encoder_decoder:
            decoder = [model.config.decoder_start_token_id, *each.labels[:-1]]
            inputs["decoder_input_ids"] = torch.tensor([decoder])
            predictions = list(enumerate(each.labels))
        else:
            predictions = [(at - 1, label) for at, label in enumerate(each.labels) if label != IGNORED]
        with torch.no_grad():
            logits = exact(**inputs).logits[0]
        likely = [logits[at] - logits[at].exp().sum().log() for at, _ in predictions]
        found.append(
            (-sum(float(row[label]) for row, (_, label) in zip(likely, predictions, strict=True)), len(likely))
        )
    return found


def test_loss_of_each_row_is_that_of_the_row_alone_in_double_precision(case, recipe, tmp_path):
    model, examples = case

    measured(model, examples, recipe(per_device_eval_batch_size=4), tmp_path / "rows.jsonl")

    rows = lines_of(tmp_path / "rows.jsonl")[1:]
    expected = plain_losses(model, examples)
    assert [row["row"] for row in rows] == list(range(10))
    assert [row["terms"] for row in rows] == [count for _, count in expected]
    assert [row["loss"] for row in rows] == pytest.approx([total / count for total, count in expected], rel=1e-4)
    assert len({row["loss"] for row in rows}) == 10


def test_loss_in_total_is_the_mean_over_target_tokens_not_over_rows(case, recipe, tmp_path):
    model, examples = case
    expected = plain_losses(model, examples)

    found = measured(model, examples, recipe(), tmp_path / "rows.jsonl")

    assert found.terms == sum(count for _, count in expected)
    assert found.loss == pytest.approx(sum(total for total, _ in expected) / found.terms, rel=1e-5)
    of_rows = sum(total / count for total, count in expected) / len(expected)
    assert abs(found.loss - of_rows) > 1e-3 * of_rows


def test_every_assistants_turn_of_a_chat_counts(recipe, causal, tmp_path):
    end = (END_ID,)
    ids = (*b"first question", *end, *b"one", *end, *b"second", *b"2?", *end)
    labels = tuple(token if at in {*range(15, 19), *range(25, 28)} else IGNORED for at, token in enumerate(ids))
    chat = Example(ids, labels, ids[:25], prompted=None)
    short = encoded(recipe(), KNOWN[:1])[0]

    measured(causal, [chat, short], recipe(), tmp_path / "rows.jsonl")

    rows = lines_of(tmp_path / "rows.jsonl")[1:]
    (total, count), _ = plain_losses(causal, [chat, short])
    assert rows[0]["terms"] == count == 7
    assert rows[0]["loss"] == pytest.approx(total / 7, rel=1e-4)


# --- answers


def argmax_answer(model, example, limit):
    """Greedy decoding with no cache and no padding, of one row."""
    start = [model.config.decoder_start_token_id] if model.config.is_encoder_decoder else list(example.prompt_ids)
    written = []
    with torch.no_grad():
        while len(written) < limit and END_ID not in written:
            so_far = torch.tensor([start + written])
            if model.config.is_encoder_decoder:
                logits = model(input_ids=torch.tensor([example.prompt_ids]), decoder_input_ids=so_far).logits
            else:
                logits = model(input_ids=so_far).logits
            written.append(int(logits[0, -1].argmax()))
    return byte_tokenizer().decode(written, skip_special_tokens=True).strip()


@pytest.mark.parametrize("limit", [3, 8])
def test_greedy_answers_are_those_of_an_argmax_loop_on_each_row_alone(case, recipe, limit):
    model, examples = case

    found = generate(model, byte_tokenizer(), examples, recipe(max_new_tokens=limit), seed=0)

    assert found == [argmax_answer(model, each, limit) for each in examples]
    assert len(set(found)) > 3
    assert {len(answer) for answer in found} >= ({2, 3} if limit == 3 else {2, 4, 6})


def test_greedy_is_greedy_whatever_the_model_would_rather_generate_with(case, recipe, monkeypatch):
    model, examples = case
    expected = generate(model, byte_tokenizer(), examples, recipe(), seed=0)
    own = copy.deepcopy(model.generation_config)
    own.update(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, no_repeat_ngram_size=1, num_beams=3, min_length=30
    )
    monkeypatch.setattr(model, "generation_config", own)

    assert generate(model, byte_tokenizer(), examples, recipe(), seed=0) == expected


@pytest.mark.parametrize("own", [None, 256, [255, 256]], ids=str)
@pytest.mark.parametrize("of_tokenizer", ["<|im_start|>", "<|im_end|>"])
def test_an_answer_ends_where_its_target_does_whatever_model_and_tokenizer_call_their_end(
    case, recipe, monkeypatch, own, of_tokenizer
):
    model, examples = case  # the targets end with <|im_end|>, as a chat template may have them
    expected = generate(model, byte_tokenizer(), examples, recipe(), seed=0)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = of_tokenizer
    config = copy.deepcopy(model.generation_config)
    config.eos_token_id = own
    monkeypatch.setattr(model, "generation_config", config)

    assert generate(model, tokenizer, examples, recipe(), seed=0) == expected


def test_right_answers_are_those_that_are_the_target(causal, recipe, tmp_path):
    examples = encoded(
        recipe(), [*KNOWN[:4], {**KNOWN[4], "target": "0"}, {**KNOWN[5], "target": KNOWN[5]["target"] + "0"}]
    )
    asked = recipe(metric="exact_match", held_out_rows=1)

    found = measured(causal, examples, asked, tmp_path / "rows.jsonl")

    rows = lines_of(tmp_path / "rows.jsonl")[1:]
    assert [row["answer"] for row in rows] == [argmax_answer(causal, each, 8) for each in examples]
    assert [row["target"] for row in rows] == [each.prompted.target for each in examples]
    assert [row["right"] for row in rows] == [True] * 4 + [False] * 2
    assert (found.metric, found.rows, found.right, found.accuracy) == ("exact_match", 6, 4, 4 / 6)
    assert (found.low, found.high) == wilson_interval(4, 6)


def test_metric_none_generates_nothing(causal, recipe, tmp_path):
    measured_alone = measured(causal, encoded(recipe(), KNOWN), recipe(), tmp_path / "rows.jsonl")

    assert all(set(row) == {"row", "loss", "terms"} for row in lines_of(tmp_path / "rows.jsonl")[1:])
    assert measured_alone.to_dict() | {
        "metric": "none",
        "right": None,
        "accuracy": None,
        "low": None,
        "high": None,
    } == (measured_alone.to_dict())


def test_every_line_has_a_score_beside_what_is_right(causal, recipe, tmp_path):
    examples = encoded(recipe(), [*KNOWN[:3], {**KNOWN[3], "target": "0"}])

    found = measured(causal, examples, recipe(metric="gsm8k", held_out_rows=1), tmp_path / "rows.jsonl")

    assert [row["score"] for row in lines_of(tmp_path / "rows.jsonl")[1:]] == [1.0, 1.0, 1.0, 0.0]
    assert (found.score, found.accuracy, found.scores) == (0.75, 0.75, {"peft_rule": 0.0})


# --- sampling


def test_several_answers_of_a_row_are_kept_in_order_with_a_score_each(case, recipe, tmp_path):
    model, examples = case
    keys = {"temperature": 0.7, "held_out_rows": 1, "metric": "exact_match"}
    several = recipe(**keys, samples=6)

    found = measured(model, examples, several, tmp_path / "rows.jsonl")

    rows = lines_of(tmp_path / "rows.jsonl")[1:]
    assert [len(row["answers"]) for row in rows] == [6] * 10
    for row in rows:
        assert row["scores"] == [float(answer == row["target"]) for answer in row["answers"]]
        assert row["score"] == pytest.approx(sum(row["scores"]) / 6)
        assert "right" not in row
    assert len({answer for row in rows for answer in row["answers"]}) > 10
    assert 0 < found.score < 1
    assert found.score == pytest.approx(sum(row["score"] for row in rows) / 10)
    assert (found.right, found.accuracy, found.low) == (None, None, None)
    one = measured(model, examples, recipe(**keys), tmp_path / "one.jsonl")
    assert [row["answer"] for row in lines_of(tmp_path / "one.jsonl")[1:]] == [row["answers"][0] for row in rows]
    assert one.right is not None


def test_sampling_too_is_by_the_recipe_alone(case, recipe, monkeypatch):
    model, examples = case
    sampled = recipe(temperature=1.5)
    expected = generate(model, byte_tokenizer(), examples, sampled, seed=0)
    own = copy.deepcopy(model.generation_config)
    own.update(top_k=1, min_p=0.9, typical_p=0.1, num_beams=2)
    monkeypatch.setattr(model, "generation_config", own)

    assert generate(model, byte_tokenizer(), examples, sampled, seed=0) == expected


def test_sampling_from_next_to_nothing_is_greedy(case, recipe):
    model, examples = case
    greedy = generate(model, byte_tokenizer(), examples, recipe(), seed=0)

    for sampled in (recipe(temperature=1.0, top_p=1e-6), recipe(temperature=1e-3)):
        assert generate(model, byte_tokenizer(), examples, sampled, seed=5) == greedy
    assert generate(model, byte_tokenizer(), examples, recipe(temperature=3.0), seed=5) != greedy


def test_samples_are_drawn_from_the_models_own_distribution(recipe):
    model = tiny_model()
    (example,) = encoded(recipe(), ROWS[:1])
    with torch.no_grad():
        share = (model(input_ids=torch.tensor([example.prompt_ids])).logits[0, -1] / 0.5).softmax(dim=0)
    expected = collections.Counter()  # bytes that are no letter are all decoded alike
    for token, text in enumerate(byte_tokenizer().batch_decode([[token] for token in range(258)], True)):
        expected[text.strip()] += float(share[token])
    assert len([text for text, part in expected.items() if part > 0.02]) > 3

    drawn = generate(model, byte_tokenizer(), [example] * 2000, recipe(temperature=0.5, max_new_tokens=1), seed=0)

    for text, part in expected.items():
        assert abs(drawn.count(text) / 2000 - part) <= 4.5 * math.sqrt(part * (1 - part) / 2000) + 1e-3


def test_samples_are_those_of_their_seed_and_the_global_random_state_stays(causal, recipe):
    examples, sampled = encoded(recipe(), UNSEEN), recipe(temperature=2.0)
    torch.manual_seed(11)
    before = torch.get_rng_state()

    first = generate(causal, byte_tokenizer(), examples, sampled, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)

    assert generate(causal, byte_tokenizer(), examples, sampled, seed=3) == first
    assert generate(causal, byte_tokenizer(), examples, sampled, seed=4) != first


# --- going on


def killed_in_the_second_batch(file, whole):
    """What a killed process leaves: the settings, a batch, half a batch and half a line."""
    lines = whole.decode().splitlines(keepends=True)
    file.write_text("".join(lines[: 1 + 4 + 2]) + lines[7][: len(lines[7]) // 2])


def killed_while_writing_the_settings(file, whole):
    file.write_bytes(whole[:8])


def killed_between_two_batches(file, whole):
    file.write_text("".join(whole.decode().splitlines(keepends=True)[: 1 + 8]))


@pytest.mark.parametrize(
    ("kill", "done"),
    [(killed_in_the_second_batch, 4), (killed_while_writing_the_settings, 0), (killed_between_two_batches, 8)],
)
def test_what_is_sampled_does_not_depend_on_where_an_earlier_call_stopped(case, recipe, tmp_path, told, kill, done):
    model, examples = case
    keys = {"temperature": 1.5, "metric": "exact_match", "held_out_rows": 1, "samples": 2}
    sampled, file = recipe(**keys), tmp_path / "rows.jsonl"
    expected = measured(model, examples, sampled, file)
    whole = file.read_bytes()
    kill(file, whole)

    assert measured(model, examples, sampled, file, told) == expected

    assert file.read_bytes() == whole
    assert told.begun == [("evaluation", 10, done)]
    assert sum(told.work) == 10 - done


def test_an_evaluation_that_is_done_is_read_and_not_done_again(causal, recipe, tmp_path, told):
    examples, file = encoded(recipe(), KNOWN), tmp_path / "rows.jsonl"  # 6 rows: the last batch is not full
    first = measured(causal, examples, recipe(), file)

    again = measured(tiny_model(seed=9), examples, recipe(), file, told)

    assert again == first
    assert (told.begun, told.work) == ([("evaluation", 6, 6)], [])


def test_rows_of_other_settings_are_refused_and_stay(causal, recipe, tmp_path):
    examples, file = encoded(recipe(), KNOWN), tmp_path / "rows.jsonl"
    measured(causal, examples, recipe(), file)
    before = file.read_bytes()

    with pytest.raises(SettingsError, match=r"rows\.jsonl holds an evaluation of other settings \(\w+\); name"):
        measured(causal, examples, recipe(), file, settings={"of": "another test"})

    assert file.read_bytes() == before


# --- what is left behind


class Full(Exception):
    pass


class FullDisk(Told):
    def advance(self, work, note):
        raise Full("no room")


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_state_come_back_even_after_an_error(causal, recipe, tmp_path, training):
    model, examples = copy.deepcopy(causal).train(training), encoded(recipe(), KNOWN)
    sampled = recipe(temperature=1.0, metric="exact_match", held_out_rows=1)
    before = torch.get_rng_state()

    measured(model, examples, sampled, tmp_path / "rows.jsonl")
    assert model.training is training
    with pytest.raises(Full, match="no room"):
        measured(model, examples, sampled, tmp_path / "others.jsonl", FullDisk())

    assert all(module.training is training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_in_train_mode_is_measured_without_its_dropout(recipe, tmp_path):
    model, examples = tiny_t5(), encoded(recipe(), KNOWN, True)
    assert model.config.dropout_rate > 0

    found = measured(model.train(), examples, recipe(), tmp_path / "rows.jsonl")

    totals = plain_losses(model, examples)
    assert found.loss == pytest.approx(sum(total for total, _ in totals) / found.terms, rel=1e-5)


# --- Wilson's interval


def score_root(share, rows, inside, outside):
    """The p between two ends at which |share - p| is 1.96 standard errors of p itself, by bisection."""
    for _ in range(200):
        middle = (inside + outside) / 2
        if abs(share - middle) <= 1.96 * math.sqrt(middle * (1 - middle) / rows):
            inside = middle
        else:
            outside = middle
    return inside


@given(st.integers(1, 5000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_wilsons_interval_ends_where_the_score_test_just_does_not_reject(numbers):
    right, rows = numbers
    low, high = wilson_interval(right, rows)

    assert low == pytest.approx(score_root(right / rows, rows, right / rows, 0.0), abs=1e-9)
    assert high == pytest.approx(score_root(right / rows, rows, right / rows, 1.0), abs=1e-9)
    assert 0 <= low < high <= 1
    assert low - 1e-12 <= right / rows <= high + 1e-12


def test_summary_weighs_rows_by_their_target_tokens():
    found = summary(
        [
            {"loss": 1.0, "terms": 3, "score": 1.0, "right": True},
            {"loss": 5.0, "terms": 1, "score": 0.0, "right": False},
        ],
        "exact_match",
    )

    assert (found.rows, found.loss, found.terms, found.right, found.score) == (2, 2.0, 4, 1, 0.5)
