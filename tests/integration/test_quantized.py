"""bitsandbytes' 4-bit (NF4) and 8-bit layers on the CPU.

Train and eval mode use different kernels for 8-bit weights everywhere, and for 4-bit ones on processors with
AVX512-BF16, whose eval kernel repacks the weight in place. The function is kept bit for bit within each mode.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import loraga
from tests.integration.common import eval_logits, train_logits
from tests.models import batches, build, relative_difference, train, with_lora

CONFIGS = {
    "4-bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "4-bit, doubly quantised": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
    "8-bit": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    build("Llama").save_pretrained(path)
    return path


@pytest.fixture(params=CONFIGS)
def quantized(request, directory):
    """Makes a quantised base anew."""

    def make():
        config = BitsAndBytesConfig(**CONFIGS[request.param])
        return AutoModelForCausalLM.from_pretrained(directory, quantization_config=config, device_map={"": "cpu"})

    return make


def weights(model):
    """The bytes of the weights and all that belongs to their quantisation, by the base's names."""
    state = model.state_dict()
    return {
        key.replace("base_model.model.", "").replace(".base_layer", ""): tensor.clone()
        for key, tensor in state.items()
        if "lora_" not in key
    }


def test_the_start_keeps_the_function_in_train_mode_and_in_eval_mode(quantized):
    base = quantized()
    before = weights(base)
    in_training = train_logits(base)
    model = with_lora(base, lora_dropout=0.1)
    report = loraga.initialize(model, batches("Llama"), progress=False)
    assert report.function_change == 0
    assert min(layer.cosine for layer in report.layers.values()) > 0.5
    assert torch.equal(train_logits(model), in_training)
    after = weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    in_eval = eval_logits(quantized())
    assert torch.equal(eval_logits(model), in_eval)
    with model.disable_adapter():
        assert torch.equal(eval_logits(model), in_eval)


def test_training_moves_the_adapter_alone_and_it_loads_again(quantized, tmp_path):
    model = with_lora(quantized(), lora_dropout=0.1)
    before = weights(model)
    loraga.initialize(model, batches("Llama"), progress=False)
    start = train_logits(model)
    model.train()
    train(model, batches("Llama"), 3)
    assert relative_difference(train_logits(model), start) > 1e-3
    model.save_pretrained(tmp_path)
    after = weights(model)
    assert all(torch.equal(before[key], after[key]) for key in before)
    reloaded = loraga.load(quantized(), tmp_path)
    reloaded.train()
    for module in reloaded.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    assert torch.equal(reloaded(**batches("Llama")[0]).logits, model(**batches("Llama")[0]).logits)


def test_folding_into_a_quantised_weight_is_refused(quantized):
    model = with_lora(quantized())
    with pytest.raises(loraga.OffsetError, match="quantised"):
        loraga.initialize(model, batches("Llama"), offset="weights", progress=False)


def test_merging_into_a_quantised_base_is_refused_on_export(quantized, tmp_path):
    model = with_lora(quantized())
    loraga.initialize(model, batches("Llama"), progress=False)
    with pytest.raises(loraga.SaveError, match="quantised"):
        loraga.export(model, tmp_path / "merged", merge=True)
