import pytest
import torch

from loraga.layers import lora_layers
from loraga.quantization import is_quantized
from loraga.scheme import Factors
from loraga.weights import float_weight, fold_offset, weight_norm
from tests import models


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_subtracts_the_start_and_says_what_rounding_lost(name, dtype):
    generator = torch.Generator().manual_seed(0)
    model = models.with_lora(models.build(name).to(dtype), name)
    for layer in lora_layers(model, "default").values():
        base = layer.get_base_layer()
        transposed = name == "GPT-2"
        original = (base.weight.T if transposed else base.weight).detach().double()
        d_out, d_in = original.shape
        start = Factors(
            A=torch.randn(3, d_in, generator=generator) * 0.1, B=torch.randn(d_out, 3, generator=generator) * 0.1
        )
        lost = fold_offset(layer, start, 0.7)
        folded = (base.weight.T if transposed else base.weight).detach().double()
        change = 0.7 * start.B.double() @ start.A.double()
        assert base.weight.dtype is dtype
        expected = float((folded + change - original).norm() / change.norm())
        assert lost == pytest.approx(expected, rel=0.05, abs=2e-7)
        assert lost < (1e-5 if dtype is torch.float32 else 0.2)
        assert folded.sub(original).add(change).norm() < (1e-5 if dtype is torch.float32 else 0.2) * change.norm()


def test_the_norm_is_the_weights_own():
    model = models.with_lora(models.build("Llama"))
    for layer in lora_layers(model, "default").values():
        assert weight_norm(layer) == pytest.approx(float(layer.get_base_layer().weight.double().norm()), rel=1e-6)
        assert not is_quantized(layer.get_base_layer())


def test_a_weight_that_this_process_cannot_read_has_no_norm():
    model = models.with_lora(models.build("Llama")).to("meta")
    assert all(weight_norm(layer) is None for layer in lora_layers(model, "default").values())


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_read_in_float32_as_it_is_multiplied_by(name, dtype):
    model = models.with_lora(models.build(name).to(dtype), name)
    for layer in lora_layers(model, "default").values():
        base = layer.get_base_layer()
        weight = float_weight(layer)
        columns = base(torch.eye(weight.shape[1], dtype=dtype)) - (0 if base.bias is None else base.bias)
        assert weight.dtype is torch.float32
        assert not weight.requires_grad
        torch.testing.assert_close(weight.T, columns.float(), rtol=0, atol=1e-6 if dtype is torch.float32 else 2e-2)
