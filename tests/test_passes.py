import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from loraga.passes import gradient_pass, same_random_states
from tests import models


def state_of(model):
    return (
        {name: (p.requires_grad, p.grad, p.detach().clone()) for name, p in model.named_parameters()},
        {name: b.clone() for name, b in model.named_buffers()},
        {name: (m.training, dict(m._forward_hooks), dict(m._backward_hooks)) for name, m in model.named_modules()},
        {
            (name, key): value
            for name, m in model.named_modules()
            for key, value in vars(m).items()
            if isinstance(value, float)
        },
        getattr(model.config, "use_cache", None),
        (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),  # noqa: NPY002
    )


def assert_same_state(before, after):
    for name, (flag, grad, value) in before[0].items():
        flag_after, grad_after, value_after = after[0][name]
        assert flag == flag_after, name
        assert grad is grad_after, name
        assert torch.equal(value, value_after), name
    assert before[1].keys() == after[1].keys()
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert before[2:5] == after[2:5]
    assert torch.equal(before[5][0], after[5][0])
    assert before[5][1] == after[5][1]
    assert np.array_equal(before[5][2], after[5][2])


def prepared(name="OPT"):
    model = models.build(name)
    model.train()
    model.activation_checkpointing_enable()
    next(iter(model.parameters())).grad = torch.full_like(next(iter(model.parameters())), 3.0)
    list(model.parameters())[2].requires_grad_(False)
    model.config.use_cache = True
    return model


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_everything_is_put_back(failure):
    model = prepared()
    before = state_of(model)
    expected = nullcontext() if failure is None else pytest.raises(failure, match="in the pass")
    with expected, gradient_pass(model):
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        assert not any(p.requires_grad for p in model.parameters())
        assert all(p.grad is None for p in model.parameters())
        assert model.config.use_cache is False
        if failure is not None:
            raise failure("in the pass")
    assert_same_state(before, state_of(model))


def test_dropout_is_off_also_where_layers_checkpoint():
    model = prepared()
    batch = models.batches("OPT", 1)[0]
    assert not torch.equal(models.logits(model, batch), models.logits(model, batch))
    with gradient_pass(model):
        assert torch.equal(models.logits(model, batch), models.logits(model, batch))
        checkpointing = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
        assert checkpointing
        assert all(module.training for module in checkpointing)
    reference = models.build("OPT")
    with gradient_pass(model):
        assert torch.equal(models.logits(model, batch), models.logits(reference, batch))


def test_trainable_parameters_stay_so_when_asked_for():
    model = prepared()
    with gradient_pass(model, trainable=True):
        assert sum(p.requires_grad for p in model.parameters()) == len(list(model.parameters())) - 1


def test_random_states_come_back_after_an_exception():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="stop"), same_random_states():
        torch.rand(3)
        raise ValueError("stop")
    assert torch.equal(before, torch.get_rng_state())
