import pytest
import torch
from torch import nn

from loraga import BatchError
from loraga.outputs import are_equal, model_outputs, relative_change
from tests import models


def test_logits_and_loss_are_collected_without_a_trace():
    model, batch = models.build("Llama"), models.batches("Llama", 1)[0]
    logits, loss = model_outputs(model, batch, None)
    assert torch.equal(logits, models.logits(model, batch))
    assert float(loss) == float(model(**batch).loss.detach())
    assert not model._forward_hooks


def test_every_call_that_a_custom_loss_makes_is_collected():
    model, (one, two) = models.build("Llama"), models.batches("Llama", 2)
    found = model_outputs(model, one, lambda m, b: m(**b).loss - m(**two).loss)
    assert len(found) == 3
    assert torch.equal(found[1], models.logits(model, two))


def test_the_largest_tensor_stands_for_an_output_without_logits():
    class Pair(nn.Module):
        def forward(self, x):
            return x[:1], x, "text"

    model, x = Pair(), torch.randn(4, 3)
    found = model_outputs(model, {"x": x}, lambda m, b: m(**b)[1].mean())
    assert torch.equal(found[0], x)
    assert torch.equal(model_outputs(nn.Tanh(), {"x": x}, lambda m, b: m(b["x"]).mean())[0], x.tanh())


def test_no_hook_is_left_after_an_exception():
    model = models.build("Llama")
    with pytest.raises(BatchError, match="the loss is nan"):
        model_outputs(model, {}, lambda m, b: torch.tensor(float("nan")))
    assert not model._forward_hooks


def test_comparison_is_bit_for_bit_and_change_is_relative():
    before = [torch.tensor([3.0, 4.0, float("nan")]), torch.tensor(1.0)]
    assert are_equal(before, [tensor.clone() for tensor in before])
    moved = [torch.tensor([3.0, 4.5, float("nan")]), torch.tensor(1.0)]
    assert not are_equal(before, moved)
    assert not are_equal(before, before[:1])
    assert not are_equal([torch.ones(2)], [torch.tensor([1.0, 1.0 + 2**-23])])
    assert relative_change(before, moved) == pytest.approx(0.1)
    assert relative_change([torch.zeros(2)], [torch.tensor([0.0, 2.0])]) == 2.0
