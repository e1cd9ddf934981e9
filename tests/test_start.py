import pytest
import torch

from loraga import GradientError, estimate_gradients
from loraga.layers import lora_layers
from loraga.scheme import SCHEMES
from loraga.start import compute_starts
from tests import models


def starts(seed=0, scheme="lora_ga", rank=2):
    model = models.with_lora(models.build("Llama"), r=rank)
    gradients = estimate_gradients(model, models.batches("Llama"), rank=2, progress=False)
    layers = lora_layers(model, "default")
    return compute_starts(layers, "default", gradients, SCHEMES[scheme], 16.0, "forward", seed), layers, gradients


def test_each_layer_has_its_own_private_random_source():
    torch.manual_seed(1)
    first, _, _ = starts(scheme="gaussian")
    torch.manual_seed(2)
    again, _, _ = starts(scheme="gaussian")
    other, _, _ = starts(seed=1, scheme="gaussian")
    assert all(torch.equal(first[name].factors.A, again[name].factors.A) for name in first)
    assert not any(torch.equal(first[name].factors.A, other[name].factors.A) for name in first)
    same_shape = [first[f"model.layers.{i}.mlp.up_proj"].factors.A for i in range(2)]
    assert not torch.equal(*same_shape)


def test_a_layers_report_is_measured_on_its_weight():
    found, layers, gradients = starts()
    for name, start in found.items():
        report = start.report(layers[name], rounding=0.25)
        A, B = start.factors.A.double(), start.factors.B.double()
        weight = layers[name].get_base_layer().weight.double()
        assert report.offset_norm == pytest.approx(float(start.eta * (B @ A).norm() / weight.norm()), rel=1e-5)
        assert report.coverage == gradients[name].coverage(4)
        assert report.rounding == 0.25
        assert report.cosine == start.first_step.cosine
        assert start.first_step is start.first_step  # computed once, for this line and for the total


def test_a_rank_beyond_the_gradients_names_the_layer():
    with pytest.raises(GradientError, match=r"layer model.layers.0.self_attn.q_proj: the gradient has 8 columns"):
        starts(rank=8)
