"""Quantised layers that cannot be started (of packages without a test here, repacked), and float16 in 4-bit ones."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from peft.tuners.lora.awq import AwqLoraLinear
from peft.tuners.lora.gptq import GPTQLoraLinear
from torch import nn

import loraga
from loraga.loss import loss_terms
from loraga.preconditions import unsupported_layers
from loraga.quantization import backend, is_quantized, is_untested
from tests import quantised
from tests.models import autograd_gradients, batches, relative_difference, train
from tests.quantised import KINDS, REFUSED, base_bytes, float_model, repack, with_lora


class StandIn(nn.Module):
    """What can be known of GPTQModel's layers without the package: the module that defines them, and their sizes.

    GPTQModel 7.7.0 asks for a later torch than the one that is tested, so that the real layers are not built here.
    """

    def __init__(self, d_in, d_out):
        super().__init__()
        self.in_features, self.out_features = d_in, d_out
        self.register_buffer("qweight", torch.zeros(d_in // 8, d_out, dtype=torch.int32))

    def forward(self, x):
        return x @ torch.zeros(self.in_features, self.out_features)


TorchLinear = type("TorchLinear", (StandIn,), {"__module__": "gptqmodel.nn_modules.qlinear.torch"})


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    float_model().save_pretrained(path)
    return path


@pytest.fixture(params=["NF4", "NF4, doubly quantised"])
def four_bit(request, directory):
    return lambda: KINDS[request.param].make(directory)


def test_integer_weights_and_the_layers_of_known_packages_count_as_quantised(four_bit):
    layer = nn.Linear(4, 4)
    assert not is_quantized(layer)
    assert backend(layer) is None
    for dtype in (torch.int8, torch.float8_e4m3fn):
        layer.weight = nn.Parameter(torch.zeros(4, 4).to(dtype), requires_grad=False)
        assert is_quantized(layer)
    layer = next(module for module in four_bit().modules() if isinstance(module, Linear4bit))
    assert is_quantized(layer)
    assert backend(layer) == "bitsandbytes"
    assert not is_untested(layer)


# PEFT asks the package, were it there, whether a layer is one of its own
@pytest.mark.filterwarnings("ignore:Unsupported layer type .*TorchLinear:UserWarning")
@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("wrapper", [GPTQLoraLinear, AwqLoraLinear])
def test_a_layer_of_gptqmodel_is_refused_with_what_can_be_done(wrapper, offset):
    layer = wrapper(TorchLinear(64, 32), "default", config=LoraConfig(r=2), r=2, lora_alpha=4)
    reasons = unsupported_layers({"x": layer}, "default", carries_offset=offset)
    assert "TorchLinear of GPTQModel (GPTQ, AWQ)" in reasons["x"]
    assert "load the model unquantised, or quantised by one that has: bitsandbytes" in reasons["x"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_base_that_does_not_run_here_is_refused_when_it_is_loaded(name, directory):
    """By transformers or the backend itself, before there is a model: nothing is loaded unquantised instead."""
    with pytest.raises(REFUSED[name].error, match=REFUSED[name].text):
        REFUSED[name].make(directory)


def test_the_layers_of_a_plain_model_are_not_left_out_silently():
    model = nn.Sequential(nn.Linear(64, 64), TorchLinear(64, 32))
    with pytest.raises(loraga.AdapterError, match=r"layer 1: a TorchLinear of GPTQModel .* load the model unquantised"):
        loraga.estimate_gradients(model, [{"labels": torch.zeros(2)}], 2, progress=False)


def test_estimating_does_not_repack_where_a_processor_would(four_bit):
    model = with_lora(four_bit())
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    before = base_bytes(model)
    model.eval()
    loraga.initialize(model, batches("Llama"), progress=False)
    loraga.suggest_learning_rate(model, batches("Llama"), progress=False)
    assert base_bytes(model) == before


def test_a_repacked_base_is_refused_because_it_has_no_gradients(four_bit):
    model = with_lora(four_bit())
    repack(model)
    before = base_bytes(model)
    for attempt in (loraga.initialize, loraga.suggest_learning_rate, estimate):
        with pytest.raises(
            loraga.AdapterError, match=r"q_proj.* and 13 more: bitsandbytes repacked .* support_avx512bf16_for_cpu ="
        ):
            attempt(model, batches("Llama"), progress=False)
    assert base_bytes(model) == before
    assert not type(model).__module__.startswith("loraga")


def estimate(model, data, progress):
    loraga.estimate_gradients(model, data, 2, progress=progress)


def test_training_on_after_an_evaluation_that_repacked_is_refused(four_bit):
    model = with_lora(four_bit())
    loraga.initialize(model, batches("Llama"), progress=False)
    model.eval()
    model.train()
    repack(model)
    with pytest.raises(loraga.AdapterError, match="no gradient passes through it any more"):
        model.train()
    model.eval()
    model.requires_grad_(False)
    assert model.train().training


def test_saving_and_loading_leave_a_repacked_base_as_it_is(four_bit, tmp_path):
    """Plain PEFT's `save_pretrained` asks for the whole state dict, in which bitsandbytes unpacks the weights."""
    model = with_lora(four_bit())
    loraga.initialize(model, batches("Llama"), progress=False)
    train(model, batches("Llama"), 2)
    model.save_pretrained(str(tmp_path / "before"))
    repack(model)
    before = base_bytes(model)
    model.save_pretrained(str(tmp_path / "after"))
    loraga.export(model, tmp_path / "exported")
    loraga.export(model, tmp_path / "compressed", rank=2)
    model.load_adapter(str(tmp_path / "after"), "default")
    assert base_bytes(model) == before
    weights = "adapter_model.safetensors"
    saved = (tmp_path / "before" / weights).read_bytes()
    assert (tmp_path / "after" / weights).read_bytes() == saved
    assert (tmp_path / "exported" / weights).read_bytes() == saved


def test_loading_onto_a_repacked_base_leaves_it_as_it_is(four_bit, tmp_path):
    """Plain PEFT's `from_pretrained` asks for the whole state dict too."""
    with_lora(four_bit()).save_pretrained(str(tmp_path))
    base = four_bit()
    repack(base)
    before = base_bytes(base)
    model = loraga.load(base, tmp_path)
    assert base_bytes(model) == before


@pytest.mark.parametrize("estimator", ["streaming", "exact"])
@pytest.mark.parametrize("factor", [1.0, 2.0**-10, 2.0**14])
def test_gradients_of_layers_that_compute_in_float16_neither_vanish_nor_overflow(directory, factor, estimator):
    """QLoRA on devices without bfloat16: what comes into a layer and goes out of it is float32."""
    kind = quantised.four_bit("nf4", compute_dtype=torch.float16)
    model, data = kind.make(directory), batches("Llama", 2)
    plain = quantised.dequantised(model, kind)
    expected = autograd_gradients(plain, data, [loss_terms(plain, batch) for batch in data])
    loss = lambda model, batch: model(**batch).loss * factor  # noqa: E731
    found = loraga.estimate_gradients(model, data, rank=16, estimator=estimator, loss=loss, progress=False)
    assert len(found) == 14
    for name, gradient in found.items():
        assert gradient.loss_terms == sum(loss_terms(plain, batch) for batch in data)
        rebuilt = gradient.U * gradient.S @ gradient.Vh
        assert relative_difference(rebuilt / factor, expected[name]) < 0.02, name
