import pytest
import torch

from loraga.lab import eva_inputs
from loraga.lab.errors import LabError, SettingsError
from loraga.lab.eva_inputs import EvaInputs

WIDE = {
    "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 7, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}
LAST_COLUMNS = {**WIDE, "labels": torch.tensor([[7, 8], [7, -100]]), "logits_to_keep": 2}
NARROW = {
    "input_ids": torch.tensor([[5, 6]]),
    "attention_mask": torch.tensor([[1, 1]]),
    "labels": torch.tensor([[-100, 6]]),
}
TWO_SIDED = {**WIDE, "labels": torch.tensor([[7, 8, 9, 1], [7, 1, -100, -100]])}


def test_a_causal_batch_gets_a_label_a_column_and_all_logits():
    inputs = EvaInputs([LAST_COLUMNS], 0, is_encoder_decoder=False)

    (batch,) = inputs.batches
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, -100, 7, -100]]


def test_tokens_with_a_label_count_in_a_causal_model():
    inputs = EvaInputs([LAST_COLUMNS], 0, is_encoder_decoder=False)
    values = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)

    found = inputs.of_layer((values,), inputs.of_model(inputs.batches[0], None), "q_proj")

    assert torch.equal(found, torch.stack([values[0, 2], values[0, 3], values[1, 2]]))


def test_all_tokens_of_an_encoder_count_and_those_with_a_label_of_a_decoder_of_the_same_length():
    inputs = EvaInputs([TWO_SIDED], 0, is_encoder_decoder=True)
    masks = inputs.of_model(inputs.batches[0], None)
    encoder, decoder = torch.randn(2, 4, 3), torch.randn(2, 5, 3)  # a column more, to be told apart

    assert torch.equal(inputs.of_layer(encoder, masks, "k"), torch.cat([encoder[0], encoder[1, :3]]))
    assert torch.equal(inputs.of_layer((decoder,), masks, "q"), torch.cat([decoder[0, :4], decoder[1, :2]]))


def test_inputs_of_another_shape_are_refused_with_the_layer():
    inputs = EvaInputs([LAST_COLUMNS], 0, is_encoder_decoder=False)

    with pytest.raises(SettingsError, match=r"inputs of layer experts\.0 belong to, of \(8, 3\); leave it out"):
        inputs.of_layer((torch.randn(8, 3),), inputs.of_model(inputs.batches[0], None), "experts.0")


def test_short_batches_are_joined_until_they_have_enough_tokens():
    # 3 tokens, 1, 3, 1, 3: for rank 1 there must be 4
    made = [LAST_COLUMNS, NARROW, LAST_COLUMNS, NARROW, LAST_COLUMNS]

    inputs = EvaInputs(made, 1, is_encoder_decoder=False)

    assert [int((batch["labels"] != -100).sum()) for batch in inputs.batches] == [4, 7]
    assert inputs.batches[0]["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 7, 0], [5, 6, 0, 0]]
    assert inputs.batches[0]["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert inputs.batches[0]["labels"][2].tolist() == [-100, 6, -100, -100]


def test_too_few_tokens_in_all_batches_are_refused():
    with pytest.raises(SettingsError, match=r"2 micro-batches have 6 of them, fewer than 4 times rank; raise grad"):
        EvaInputs([LAST_COLUMNS] * 2, 2, is_encoder_decoder=False)


def test_components_that_never_stand_still_come_to_an_end(monkeypatch):
    monkeypatch.setattr(eva_inputs, "MOST_FORWARDS", 2)
    inputs = EvaInputs([LAST_COLUMNS], 0, is_encoder_decoder=False)
    calls = []

    with pytest.raises(LabError, match="still move after 2 batches, 1 of them over and over; raise gradient_batches"):
        for _ in range(3):
            inputs.forward(lambda **batch: calls.append(batch), inputs.batches[0])

    assert len(calls) == 2
