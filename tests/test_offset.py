import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from loraga import OffsetError
from loraga.layers import lora_layers
from loraga.offset import (
    attach_offset,
    detach_offset,
    has_offset,
    is_folded,
    offset_of,
    require_offset_support,
    trained_factors,
)
from loraga.scheme import Factors
from tests import models


def one_layer(name="Llama", **settings):
    """A PEFT layer with random factors and another random start, and a dense copy of its base weight (d_out, d_in)."""
    model = models.with_lora(models.build(name), name, **settings)
    layer = next(iter(lora_layers(model, "default").values()))
    generator = torch.Generator().manual_seed(3)
    now = trained_factors(layer, "default")
    start = Factors(*(torch.randn(f.shape, generator=generator) * 0.2 for f in (now.A, now.B)))
    now.A.copy_(torch.randn(now.A.shape, generator=generator) * 0.2)
    now.B.copy_(torch.randn(now.B.shape, generator=generator) * 0.2)
    weight = layer.get_base_layer().weight.detach()
    return layer.eval(), start, (weight.T if name == "GPT-2" else weight).double()


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_forward_and_merges_apply_the_difference_of_the_products(name):
    layer, start, weight = one_layer(name, lora_alpha=5)
    attach_offset(layer, "default", start)
    now, eta = trained_factors(layer, "default"), layer.scaling["default"]
    expected = weight + eta * (now.B.double() @ now.A.double() - start.B.double() @ start.A.double())
    x = torch.randn(7, weight.shape[1])
    bias = layer.get_base_layer().bias if layer.get_base_layer().bias is not None else 0.0
    reference = x.double() @ expected.T + bias
    torch.testing.assert_close(layer(x).double(), reference, rtol=1e-4, atol=1e-5)
    for safe in (True, False):
        before = layer.get_base_layer().weight.detach().clone()
        layer.merge(safe_merge=safe)
        torch.testing.assert_close(layer(x).double(), reference, rtol=1e-4, atol=1e-5)
        merged = layer.get_base_layer().weight.detach()
        torch.testing.assert_close((merged.T if name == "GPT-2" else merged).double(), expected, rtol=1e-4, atol=1e-6)
        layer.unmerge()
        torch.testing.assert_close(layer.get_base_layer().weight.detach(), before, rtol=0, atol=1e-6)


def test_values_and_gradients_are_those_of_the_formula_with_one_dropout_for_both():
    layer, start, _ = one_layer("Qwen2", lora_dropout=0.5, lora_bias=True, target_modules=["q_proj"])
    attach_offset(layer, "default", start)
    layer.train()
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"]
    B.bias.data.normal_(generator=torch.Generator().manual_seed(5))
    x = torch.randn(3, 5, A.shape[1], generator=torch.Generator().manual_seed(6), requires_grad=True)
    torch.manual_seed(8)
    found = layer(x)
    torch.manual_seed(8)
    dropped = layer.lora_dropout["default"](x)
    exact = [tensor.detach().double().requires_grad_() for tensor in (A, B.weight, B.bias, dropped)]
    a, b, bias, d = exact
    added = d @ a.T @ b.T + bias - d @ start.A.double().T @ start.B.double().T
    expected = layer.get_base_layer()(x).double() + layer.scaling["default"] * added
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(7))
    (found * weights).sum().backward()
    (layer.scaling["default"] * added * weights.double()).sum().backward()
    for actual, reference in zip((A, B.weight, B.bias), exact, strict=False):
        torch.testing.assert_close(actual.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", [True, False])
def test_the_start_is_taken_off_exactly_whatever_the_inputs_strides(trainable):
    """Torch multiplies a strided batch in another order where the weight asks for a gradient, as only A and B do."""
    layer, _, _ = one_layer()
    attach_offset(layer, "default", trained_factors(layer, "default"))
    layer.lora_A.requires_grad_(trainable), layer.lora_B.requires_grad_(trainable)
    base = layer.get_base_layer().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for shape in ((layer.in_features,), (5, layer.in_features), (2, 3, 7, layer.in_features), (0, layer.in_features)):
        x = torch.randn(shape, generator=generator)
        assert torch.equal(layer(x), base(x))
    for _ in range(20):
        x = torch.randn(3, layer.in_features, 14, generator=generator).transpose(1, 2)
        assert torch.equal(layer(x), base(x))


def test_both_products_share_one_dropout():
    """With B A = B0 A0 the output is the base's for every mask; with two masks it would not be."""
    layer, _, _ = one_layer(lora_dropout=0.5)
    attach_offset(layer, "default", trained_factors(layer, "default"))
    layer.train()
    x = torch.randn(64, layer.in_features)
    for _ in range(3):
        assert torch.equal(layer(x), layer.get_base_layer()(x))


def test_the_trained_product_alone_gets_gradients():
    layer, start, weight = one_layer()
    attach_offset(layer, "default", start)
    x = torch.randn(9, weight.shape[1])
    layer(x).square().mean().backward()
    assert layer.lora_A["default"].weight.grad is not None
    assert all(not buffer.requires_grad for name, buffer in layer.named_buffers() if "offset" in name)
    assert not any("offset" in name for name, _ in layer.named_parameters())


def test_a_start_is_copied_and_can_be_removed_without_a_trace():
    layer, start, _ = one_layer()
    names, state = layer.other_param_names, set(layer.state_dict())
    attach_offset(layer, "default", start)
    assert has_offset(layer, "default")
    assert not is_folded(layer, "default")
    start.A.zero_()
    assert offset_of(layer, "default").A.any()
    assert {key for key in layer.state_dict() if "offset" in key} == {"lora_offset_A.default", "lora_offset_B.default"}
    detach_offset(layer, "default")
    assert not has_offset(layer, "default")
    assert layer.other_param_names == names
    assert set(layer.state_dict()) == state
    assert not layer.lora_variant
    detach_offset(layer, "default")


def test_a_folded_start_leaves_the_forward_to_peft():
    layer, start, _ = one_layer()
    x = torch.randn(5, layer.in_features)
    plain = layer(x)
    attach_offset(layer, "default", start, folded=True)
    assert is_folded(layer, "default")
    assert torch.equal(layer(x), plain)


def test_a_conversion_that_would_lose_the_offset_is_declined():
    layer, start, _ = one_layer()
    assert layer.supports_lora_conversion("default")
    attach_offset(layer, "default", start)
    assert not layer.supports_lora_conversion("default")


def test_layers_that_cannot_carry_an_offset_are_refused():
    layer, _, _ = one_layer(use_dora=True)
    with pytest.raises(OffsetError, match="layer x: DoraLinearVariant is in use and cannot carry an offset"):
        require_offset_support("x", layer, "default")

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 4, 4))

        def forward(self, x):
            return x @ self.weight[0] @ self.weight[1]

    model = get_peft_model(nn.Sequential(Experts()), LoraConfig(r=1, target_modules=[], target_parameters=["0.weight"]))
    wrapper = next(m for m in model.modules() if type(m).__name__ == "ParamWrapper")
    with pytest.raises(OffsetError, match=r"layer x: PEFT's peft.tuners.lora.layer.ParamWrapper cannot carry"):
        require_offset_support("x", wrapper, "default")
