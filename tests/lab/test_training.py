import copy
import math

import pytest
import torch

from loraga.lab.encoding import batches
from loraga.lab.methods import METHODS, Adapter
from loraga.lab.task import Item
from loraga.lab.training import train

ITEMS = [Item(f"{n} + {n} =", str(2 * n)) for n in range(12)]


@pytest.fixture
def ready(tokenizer):
    return batches(tokenizer, ITEMS, size=2)


def lora(model, seed=0):
    return METHODS["lora"].start(model, [], Adapter(rank=4), seed).model


def test_losses_are_those_of_the_batches_in_their_order(ready, model):
    frozen = copy.deepcopy(model)
    expected = [frozen(**batch).loss.item() for batch in ready]

    run = train(lora(model), ready, learning_rate=0.0, seed=0)

    assert run.losses == pytest.approx(expected, rel=1e-5)
    assert run.seconds_per_step > 0


def test_training_is_adamw_with_warm_up_and_cosine(ready, model):
    reference = lora(copy.deepcopy(model)).train()
    weights = [weight for weight in reference.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    warm_up, cosine = [0.0], [0.01 * 0.5 * (1 + math.cos(math.pi * step / 5)) for step in range(5)]
    for batch, rate in zip(ready, warm_up + cosine, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        reference(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    trained = lora(model)
    train(trained, ready, learning_rate=0.01, seed=0)

    found = [weight for weight in trained.parameters() if weight.requires_grad]
    for one, other in zip(found, weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_same_run_twice_is_the_same_bit_for_bit(ready, model):
    again = copy.deepcopy(model)

    assert train(lora(model), ready, 0.01, seed=0).losses == train(lora(again), ready, 0.01, seed=0).losses


def test_each_step_is_told_with_its_loss(ready, model):
    told = []

    run = train(lora(model), ready, 0.01, 0, told.append)

    assert tuple(told) == run.losses
    assert len(told) == len(ready)
