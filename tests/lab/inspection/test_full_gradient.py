import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from loraga import BatchError, GradientError
from loraga.lab.inspection.full_gradient import full_gradients
from tests.lab.conftest import tiny_model, tiny_t5
from tests.models import autograd_gradients, relative_difference


def batches():
    """Two micro-batches of a causal model with 36 and 8 loss terms."""
    generator = torch.Generator().manual_seed(3)
    made = [{"input_ids": torch.randint(0, 256, (2, 20), generator=generator)} for _ in range(2)]
    for batch, first in zip(made, (2, 16), strict=True):
        batch["labels"] = batch["input_ids"].clone()
        batch["labels"][:, :first] = -100
    return made


TERMS = [36.0, 8.0]


def test_the_sum_is_the_autograd_gradient_weighted_by_loss_terms(told):
    found, loss_terms = full_gradients(tiny_model(), batches(), told)

    expected = autograd_gradients(tiny_model(), batches(), TERMS)
    assert loss_terms == sum(TERMS)
    assert set(found) == set(expected) - {"lm_head"}
    for layer, gradient in found.items():
        assert relative_difference(gradient, expected[layer]) < 1e-5
    assert told.begun == [("gradient", 2, 0.0)]
    assert told.work == [1, 1]


def test_an_encoder_decoder_counts_its_own_labels(told):
    generator = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(0, 256, (2, 9), generator=generator), "labels": torch.arange(8).reshape(2, 4)}

    found, loss_terms = full_gradients(tiny_t5(), [batch], told)

    expected = autograd_gradients(tiny_t5(), [batch], [1.0])
    assert loss_terms == 8
    name = "decoder.block.1.layer.1.EncDecAttention.k"
    assert relative_difference(found[name], expected[name]) < 1e-5


def test_the_model_and_the_random_state_are_left_as_they_were(told):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])).train()
    before = copy.deepcopy(model.state_dict())
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    state = torch.get_rng_state()

    found, _ = full_gradients(model, batches(), told)

    assert set(found) == {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trainable
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_stop_in_the_middle_leaves_no_hook(told):
    model = tiny_model()
    told.advance = lambda work, note: (_ for _ in ()).throw(KeyboardInterrupt("stop"))

    with pytest.raises(KeyboardInterrupt, match="stop"):
        full_gradients(model, batches(), told)

    assert not any(module._forward_hooks for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_layer_that_no_loss_term_depends_on_is_left_out(told):
    model = tiny_model()
    model.unused = nn.Linear(4, 3)

    found, _ = full_gradients(model, batches(), told)

    assert "unused" not in found
    assert len(found) == 14


def test_batches_without_targets_are_refused(told):
    masked = {**batches()[0], "labels": torch.full((2, 20), -100)}

    with pytest.raises(BatchError, match="batch 0 has 0 loss terms"):
        full_gradients(tiny_model(), [masked], told)


def test_a_gradient_that_is_not_finite_names_its_layer(told):
    model = tiny_model()
    layer = model.model.layers[1].mlp.up_proj
    layer.register_full_backward_pre_hook(lambda module, gradients: (gradients[0] * float("inf"),))

    with pytest.raises(GradientError, match=r"layer model\.layers\.\d\.[a-z_.]+: .*not finite"):
        full_gradients(model, batches(), told)


def test_float16_is_refused(told):
    model = tiny_model().half()
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(GradientError, match=r"in float16 small gradients vanish, .*; add dtype=float32"):
        full_gradients(model, [{"input_ids": ids, "labels": ids}], told)
