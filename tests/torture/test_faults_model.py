"""An exception at every hook, merge and write in turn: the model is as it was, and the next call is not affected."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import loraga
from tests import models
from tests.architectures.decoders import decoder
from tests.integration.common import adapter_state, assert_same
from tests.torture.faults import Injected, Point, points
from tests.torture.snapshot import differences, snapshot

TARGETS = ["q_proj", "down_proj"]
BATCHES = models.batches("Llama", 2)
SAMPLE = 9  # in the ordinary run, every ninth point


def with_traces(**settings):
    """A small model in train mode, of which every kind of state that a pass could spoil is set."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        base = decoder("Llama", attention_dropout=0.1).build()
    model = models.with_lora(base, target_modules=TARGETS, **settings)
    model.train()
    model.base_model.model.model.layers[0].mlp.eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    model.base_model.model.model.norm.register_forward_hook(lambda module, inputs, output: None)
    return model


def initialize(**choices):
    return lambda model: loraga.initialize(model, BATCHES, progress=False, **choices)


def initialized(model):
    loraga.initialize(model, BATCHES, progress=False)
    return model


def gradients(model, **choices):
    return loraga.estimate_gradients(model, BATCHES, 2, progress=False, **choices)


def suggest(model):
    return loraga.suggest_learning_rate(model, BATCHES, progress=False)


OPERATIONS = {
    "initialize": (lambda: with_traces(lora_dropout=0.1), initialize()),
    "initialize, no offset": (lambda: with_traces(lora_dropout=0.1), initialize(offset="none")),
    "initialize, offset in the weights": (with_traces, initialize(offset="weights", keep_original=True)),
    "estimate_gradients": (with_traces, gradients),
    "estimate_gradients, exactly": (with_traces, lambda model: gradients(model, estimator="exact")),
    "suggest_learning_rate": (lambda: initialized(with_traces()), suggest),
}


def plain(result):
    """A result without its time."""
    if isinstance(result, dict):
        return {name: (g.U.tolist(), g.S.tolist(), g.Vh.tolist(), g.tail) for name, g in result.items()}
    return {key: value for key, value in dataclasses.asdict(result).items() if key != "seconds"}


def every_point_leaves_the_model_as_it_was(name, error, step, offset=0):
    make, operate = OPERATIONS[name]
    operate(make())  # whatever is imported or kept at the first call is there
    fresh = make()
    with points(Point()) as counted:
        expected = operate(fresh)
    model = make()
    before = snapshot(model)
    numbers = range(offset, len(counted.passed), step)
    for number in numbers:
        where = f"point {number} of {len(counted.passed)}, {counted.passed[number]}"
        with pytest.raises(error, match="injected at"), points(Point(number, error)) as point:
            operate(model)
        assert point.passed[-1] == counted.passed[number], where
        assert not differences(before, snapshot(model)), where
    assert plain(operate(model)) == plain(expected)
    assert_same(adapter_state(model), adapter_state(fresh))
    return len(numbers)


@pytest.mark.sampled
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failure_at_some_points_leaves_the_model_as_it_was(name, record_property):
    record_property("injection points", every_point_leaves_the_model_as_it_was(name, Injected, 4 * SAMPLE, offset=3))


@pytest.mark.torture
@pytest.mark.parametrize(("error", "step"), [(Injected, 3), (KeyboardInterrupt, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failure_at_any_point_leaves_the_model_as_it_was(name, error, step, record_property):
    record_property("injection points", every_point_leaves_the_model_as_it_was(name, error, step))
