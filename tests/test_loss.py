import pytest
import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from loraga import BatchError
from loraga.loss import collect_micro_batches, loss_terms, mean_loss, move_to, one_example, shifts_labels
from tests import models
from tests.architectures.kinds import causal_batch


@pytest.mark.parametrize(
    ("name", "shifted"),
    [("Llama", True), ("GPT-2", True), ("OPT", True), ("T5", False), ("BERT", False), ("ViT", False)],
)
def test_which_models_compare_a_label_with_the_output_before_it(name, shifted):
    assert shifts_labels(models.build(name)) is shifted


@pytest.mark.parametrize(
    "name", [name for name in models.WORKING if name != "Wav2Vec2" and "labels" in models.batches(name, 1)[0]]
)
def test_the_mean_loss_is_the_mean_over_the_counted_terms(name):
    """Independent check: with half of a batch's terms in each of two copies, means add by their counts."""
    model = models.build(name)
    batch = models.batches(name, 1)[0]
    labels = batch["labels"]
    if model.config.is_encoder_decoder:  # by default the labels are the decoder's inputs too
        batch["decoder_input_ids"] = shift_tokens_right(labels, 0, model.config.decoder_start_token_id)
    if labels.ndim == 1 or "ForCTC" in type(model).__name__:
        parts = [{key: value[rows] for key, value in batch.items()} for rows in (slice(0, 1), slice(1, None))]
    else:
        keep = torch.arange(labels.numel()).view(labels.shape) % 2 == 0
        ignored = torch.tensor(getattr(model.config, "semantic_loss_ignore_index", -100))
        parts = [{**batch, "labels": labels.where(mask, ignored)} for mask in (keep, ~keep)]
    counts = [loss_terms(model, part) for part in parts]
    total = loss_terms(model, batch)
    assert sum(counts) == total
    whole = sum(count * mean_loss(model, part).item() for count, part in zip(counts, parts, strict=True)) / total
    assert whole == pytest.approx(mean_loss(model, batch).item(), rel=1e-5)


def test_a_ctc_loss_that_is_a_sum_counts_each_batch_once():
    model = models.build("Wav2Vec2")
    batch = models.batches("Wav2Vec2", 1)[0]
    parts = [{key: value[rows] for key, value in batch.items()} for rows in (slice(0, 1), slice(1, None))]
    assert sum(mean_loss(model, part).item() for part in parts) == pytest.approx(mean_loss(model, batch).item())
    assert [loss_terms(model, part) for part in (*parts, batch)] == [1, 1, 1]


def test_a_custom_loss_of_a_ctc_model_counts_examples():
    batch = models.batches("Wav2Vec2", 1)[0]
    expected = len(batch["input_values"])
    assert loss_terms(models.build("Wav2Vec2"), batch, loss=lambda model, batch: model(**batch).loss) == expected


def test_labels_that_are_no_tensor_ask_for_a_weight():
    boxes = {"labels": [{"class_labels": torch.zeros(2), "boxes": torch.zeros(2, 4)}]}
    with pytest.raises(BatchError, match=r"batch 3: its labels are no tensor .* pass weight=callable\(batch\)"):
        loss_terms(models.build("ViT"), boxes, 3)


def test_the_first_label_of_a_causal_model_is_no_term():
    model, tokens = models.build("Llama"), models.batches("Llama", 1)[0]["input_ids"]
    batch = {"input_ids": tokens, "labels": tokens}
    assert loss_terms(model, batch) == tokens[:, 1:].numel()
    scores = models.logits(model, batch)[:, :-1].flatten(0, 1)
    total = nn.functional.cross_entropy(scores, tokens[:, 1:].flatten(), reduction="sum")
    assert total.item() / loss_terms(model, batch) == pytest.approx(mean_loss(model, batch).item(), rel=1e-5)


def test_a_peft_model_is_counted_as_its_base_model():
    batch = models.batches("Llama", 1)[0]
    base = models.build("Llama")
    expected = loss_terms(base, batch)
    assert loss_terms(models.with_lora(base), batch) == expected == (batch["labels"][:, 1:] != -100).sum()


def test_float_labels_count_examples():
    assert loss_terms(models.build("ViT"), {"labels": torch.rand(7, 5)}) == 7


def test_a_custom_loss_without_labels_counts_examples():
    batch = {"note": "a pair", "chosen": torch.zeros(6, 3)}
    assert loss_terms(models.build("Llama"), batch, loss=lambda model, batch: torch.tensor(0.0)) == 6


def test_a_weight_function_is_what_counts():
    taken = collect_micro_batches(
        models.build("Llama"), models.batches("Llama", 3), 2, weight=lambda batch: float(batch["input_ids"].numel())
    )
    assert [item.loss_terms for item in taken] == [42.0, 42.0]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches is empty"),
        ({"input_ids": torch.zeros(1, 2)}, "one batch, not an iterable"),
        ([{"input_ids": torch.zeros(1, 2)}], r"batch 0 has no 'labels' \(its keys: input_ids\)"),
        ([{"labels": torch.full((2, 5), -100)}], "batch 0 has 0 loss terms: all its labels are masked"),
        ([torch.zeros(2)], "batch 0 is a Tensor, not a dict"),
    ],
)
def test_batches_that_cannot_be_used_are_refused(batches, message):
    with pytest.raises(BatchError, match=message):
        collect_micro_batches(models.build("Llama"), batches, 8)


def test_the_message_names_the_batch():
    good = models.batches("Llama", 2)
    bad = {**good[0], "labels": torch.full_like(good[0]["labels"], -100)}
    with pytest.raises(BatchError, match="batch 2 has 0 loss terms"):
        collect_micro_batches(models.build("Llama"), [*good, bad], 8)


def test_a_number_of_batches_below_one_is_refused():
    with pytest.raises(BatchError, match="num_batches is 0"):
        collect_micro_batches(models.build("Llama"), models.batches("Llama"), 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(value):
    with pytest.raises(BatchError, match=f"batch 4: the loss is {value}"):
        mean_loss(models.build("Llama"), {}, 4, lambda model, batch: torch.tensor(value))


def test_a_loss_of_many_elements_is_refused():
    with pytest.raises(BatchError, match=r"one element, got a tensor of shape \(2,\)"):
        mean_loss(models.build("Llama"), {}, 0, lambda model, batch: torch.zeros(2))


def test_a_model_that_returns_no_loss_is_refused():
    batch = models.batches("Llama", 1)[0]
    with pytest.raises(BatchError, match="returned no loss"):
        mean_loss(models.build("Llama"), {"input_ids": batch["input_ids"]})


def test_moving_a_batch_keeps_what_is_no_tensor():
    moved = move_to({"a": [torch.zeros(2)], "b": "text", "c": {"d": torch.zeros(1)}}, torch.device("meta"))
    assert moved["a"][0].device.type == moved["c"]["d"].device.type == "meta"
    assert moved["b"] == "text"


def test_one_example_of_a_batch_is_the_one_with_the_most_labels():
    batch = causal_batch(torch.Generator().manual_seed(0))
    batch["labels"] = batch["labels"].clone()
    batch["labels"][0], batch["labels"][2, 1:] = -100, -100
    one = one_example(batch)
    assert one.keys() == batch.keys()
    assert all(torch.equal(one[key], batch[key][1:2]) for key in batch)


@pytest.mark.parametrize(
    "more",
    [
        {"return_loss": True},
        {"pixel_values": torch.zeros(7, 4)},
        {"position_ids": torch.zeros(3, 3, 14)},
        {"scale": torch.tensor(1.0)},
    ],
)
def test_a_batch_that_may_not_have_one_row_an_example_is_left_whole(more):
    batch = {**causal_batch(torch.Generator().manual_seed(0)), **more}
    assert one_example(batch) is batch
