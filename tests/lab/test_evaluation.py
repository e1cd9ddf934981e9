import math

import pytest
import torch

from loraga.lab.encoding import batches, collate, encode
from loraga.lab.evaluation import evaluate, greedy_answers
from loraga.lab.task import Item

from .conftest import byte_tokenizer, tiny_model

ITEMS = [Item(f"{a} + {b} =", str(a + b)) for a, b in [(1, 1), (20, 22), (5, 60), (100, 11)]]
UNSEEN = [Item("7 + 7 =", "14"), Item("30 + 31 =", "61")]


@pytest.fixture(scope="module")
def memoriser():
    """A model that knows the answers of ITEMS, in train mode as a training run leaves it."""
    model = tiny_model().train()
    (batch,) = batches(byte_tokenizer(), ITEMS, size=len(ITEMS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model


def test_right_answers_are_those_that_greedy_decoding_writes(memoriser, tokenizer):
    items = [*ITEMS, *UNSEEN, Item(ITEMS[1].question, "4"), Item(ITEMS[1].question, "421")]

    found = evaluate(memoriser, tokenizer, items)

    written = greedy_answers(memoriser, tokenizer, items)
    assert found.right == tuple(answer == item.answer for answer, item in zip(written, items, strict=True))
    assert found.right == (True,) * 4 + (False,) * 4
    assert found.accuracy == 0.5


def test_loss_is_the_mean_over_all_tokens(tokenizer, model, monkeypatch):
    monkeypatch.setattr("loraga.lab.evaluation.BATCH", 3)
    whole = collate([encode(tokenizer, item) for item in ITEMS], tokenizer.pad_token_id)

    assert evaluate(model, tokenizer, ITEMS).loss == pytest.approx(model(**whole).loss.item(), rel=1e-5)


def test_an_untrained_model_has_the_loss_of_guessing(tokenizer, model):
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)

    assert evaluate(model, tokenizer, ITEMS).loss == pytest.approx(math.log(258), rel=1e-5)


def test_batched_answers_are_those_of_each_question_alone(memoriser, tokenizer):
    items = [*ITEMS, *UNSEEN]
    alone = [greedy_answers(memoriser, tokenizer, [item])[0] for item in items]

    assert greedy_answers(memoriser, tokenizer, items) == alone
    assert len(set(alone)) > 2


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_put_back_and_the_work_adds_up_to_one(training, tokenizer, model, monkeypatch):
    monkeypatch.setattr("loraga.lab.evaluation.BATCH", 2)
    model.train(training)
    done = []

    evaluate(model, tokenizer, ITEMS, done.append)
    greedy_answers(model, tokenizer, ITEMS)

    assert model.training is training
    assert done == pytest.approx([0.5, 0.5])
