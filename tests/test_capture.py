import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from loraga import GradientError
from loraga.capture import capture, is_linear, layer_shape
from tests import models


def captured(model, layers, run):
    """Sum of dY^T X over the calls of each layer, and how often each was reported."""
    sums, calls = {}, {}

    def receive(name, inputs, gradients):
        sums[name] = sums.get(name, 0) + gradients.T @ inputs
        calls[name] = calls.get(name, 0) + 1

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with capture(model, layers, receive) as counter:
        counter.start_forward()
        loss = run()
        counter.start_backward()
        loss.backward()
        counts = {name: counter.calls(name) for name in layers}
    return sums, calls, counts


def reference(model, layers, run):
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    run().backward()
    gradients = {
        name: layer.weight.grad if isinstance(layer, nn.Linear) else layer.weight.grad.T
        for name, layer in layers.items()
    }
    for layer in layers.values():
        layer.weight.requires_grad_(False)
        layer.weight.grad = None
    return gradients


class Network(nn.Module):
    """Two linear layers and a Conv1D, with the first one called twice and an activation that writes in place."""

    def __init__(self, checkpointing=None):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 5), Conv1D(4, 5)
        self.checkpointing = checkpointing

    def body(self, x):
        x = torch.relu_(self.first(x))
        x = torch.relu_(self.first(x))
        return torch.relu_(self.second(x))

    def forward(self, x):
        if self.checkpointing is None:
            hidden = self.body(x)
        else:
            hidden = checkpoint(self.body, x, use_reentrant=self.checkpointing)
        return self.third(hidden).square().mean()


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_captured_products_are_the_weight_gradients(checkpointing):
    torch.manual_seed(0)
    model = Network(checkpointing)
    layers = {"first": model.first, "second": model.second, "third": model.third}
    inputs = torch.randn(3, 7, 6, requires_grad=checkpointing is True)  # reentrant checkpointing needs such an input
    expected = reference(model, layers, lambda: model(inputs))
    sums, calls, counts = captured(model, layers, lambda: model(inputs))
    assert calls == counts == {"first": 2, "second": 1, "third": 1}
    for name, gradient in expected.items():
        torch.testing.assert_close(sums[name], gradient, rtol=1e-5, atol=1e-8)


def test_two_layers_that_share_a_weight_are_reported_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    layers, inputs = {"0": model[0], "2": model[2]}, torch.randn(9, 4)

    def run():
        return model(inputs).square().mean()

    model[0].weight.requires_grad_(True)
    run().backward()
    tied = model[0].weight.grad
    sums, calls, _ = captured(model, layers, run)
    assert calls == {"0": 1, "2": 1}
    torch.testing.assert_close(sums["0"] + sums["2"], tied, rtol=1e-5, atol=1e-8)


def test_a_keyword_input_is_seen():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(3, 2), torch.randn(5, 3)
    sums, _, _ = captured(layer, {"": layer}, lambda: layer(input=inputs).square().mean())
    expected = reference(layer, {"": layer}, lambda: layer(inputs).square().mean())
    torch.testing.assert_close(sums[""], expected[""], rtol=1e-5, atol=1e-8)


def test_a_forward_without_gradient_reports_nothing():
    layer, seen = nn.Linear(3, 2), []
    with capture(layer, {"": layer}, lambda *call: seen.append(call)), torch.no_grad():
        assert layer(torch.randn(5, 3)).requires_grad is False
    assert seen == []


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_exception(failure):
    model = models.build("Llama")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    with pytest.raises(failure, match="stop"), capture(model, layers, lambda *call: None):
        raise failure("stop")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_inputs_are_recomputed_under_checkpointing_and_kept_without():
    for checkpointing in (None, False, True):
        model, seen, received = Network(checkpointing).requires_grad_(False), [], []
        model.second.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        with capture(model, {"second": model.second}, lambda name, inputs, _, r=received: r.append(inputs)):
            model(torch.randn(3, 7, 6, requires_grad=True)).backward()
        assert len(received) == 1
        assert (received[0].data_ptr() == seen[0].data_ptr()) is (checkpointing is None)


def test_shapes_are_in_the_papers_orientation():
    assert layer_shape(nn.Linear(3, 5)) == layer_shape(Conv1D(5, 3)) == (5, 3)
    assert is_linear(Conv1D(5, 3))
    with pytest.raises(GradientError, match="a Embedding is not a linear layer"):
        layer_shape(nn.Embedding(4, 2))
