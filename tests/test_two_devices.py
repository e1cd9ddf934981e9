"""A model that lies on two devices, and batches that lie on another one than the model."""

import pytest
import torch
from torch import nn

from loraga import estimate_gradients, initialize, suggest_learning_rate
from loraga.capture import capture
from tests import models
from tests.second_device import FIRST, SECOND, OnSecond, TwoDevices, move

FACTORS = ("U", "S", "Vh")


def on_two_devices(model):
    """Moves the second half of a Llama to the second device."""
    for part in (model.model.layers[1], model.model.norm, model.lm_head):
        move(part)
    return model


def test_the_second_device_refuses_what_two_gpus_would():
    one, other = torch.arange(6.0).view(2, 3), OnSecond(torch.ones(2, 3))
    with TwoDevices():
        with pytest.raises(RuntimeError, match="to be on the same device"):
            one + other
        with pytest.raises(RuntimeError, match="to be on the same device"):
            nn.functional.linear(one, other)
        assert (one.to(SECOND) * 2 + other).device == SECOND
        assert torch.equal((one.to(SECOND) * 2 + other).to(FIRST), one * 2 + 1)
        assert torch.zeros(2, device=SECOND).device == SECOND
    assert other.device != one.device


@pytest.mark.parametrize("estimator", ["streaming", "exact"])
@pytest.mark.parametrize("rank", [1, 8])  # sums of factors, and of matrices
def test_a_model_on_two_devices_has_the_gradients_of_one_on_one_bit_for_bit(rank, estimator):
    data = models.batches("Llama", 3)
    settings = {"rank": rank, "estimator": estimator, "progress": False}
    expected = estimate_gradients(models.build("Llama"), data, **settings)
    with TwoDevices():
        found = estimate_gradients(on_two_devices(models.build("Llama")), data, **settings)
        for name, gradient in found.items():
            is_second = "layers.1." in name and estimator == "streaming"  # Algorithm 2 sums on the CPU
            assert gradient.U.device == (SECOND if is_second else FIRST)
            assert all(torch.equal(getattr(gradient, key).to(FIRST), getattr(expected[name], key)) for key in FACTORS)
            assert gradient.tail == expected[name].tail


def test_a_start_on_two_devices_is_the_start_on_one_bit_for_bit():
    data, single, split = models.batches("Llama"), *(models.with_lora(models.build("Llama")) for _ in range(2))
    initialize(single, data, progress=False)
    with TwoDevices():
        on_two_devices(split.get_base_model())
        assert initialize(split, data, progress=False).function_change == 0
        factors = {name: tensor for name, tensor in split.state_dict().items() if "lora_" in name}
        assert {tensor.device for tensor in factors.values()} == {FIRST, SECOND}
        for name, tensor in single.state_dict().items():
            assert "lora_" not in name or torch.equal(factors[name].to(FIRST), tensor)


def test_a_layer_that_fetches_its_input_from_another_device_gives_both_on_its_own():
    class Fetching(nn.Linear):
        def forward(self, x):
            return super().forward(x.to(SECOND))

    torch.manual_seed(0)
    layer, inputs, seen = Fetching(4, 3), torch.randn(5, 4), []
    expected = inputs.sum(0).expand(3, 4)
    move(layer, inputs_follow=False)
    with TwoDevices(), capture(layer, {"": layer}, lambda *call: seen.append(call[1:])):
        layer(inputs).sum().backward()
        [(captured, gradients)] = seen
        assert captured.device == gradients.device == SECOND
        torch.testing.assert_close((gradients.T @ captured).to(FIRST), expected)


def test_batches_follow_the_model_to_its_device():
    data = models.batches("Llama", 2)
    single, other = (models.with_lora(models.build("Llama")) for _ in range(2))
    initialize(single, data, progress=False)
    expected = suggest_learning_rate(single, data, progress=False)
    with TwoDevices():
        move(other, inputs_follow=False)
        initialize(other, data, progress=False)
        found = suggest_learning_rate(other, data, progress=False)
    assert (found.value, found.curve) == (expected.value, expected.curve)
