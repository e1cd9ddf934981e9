"""Starts where this package cannot be imported: `PeftModel.from_pretrained(..., is_trainable=True)`, and Trainer."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel

import loraga
from tests.integration.common import STEPS, base, eval_logits, read, trainer
from tests.models import batches, relative_difference, with_lora

LORA = {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"down_proj": 9}}
WEIGHTS = "adapter_model.safetensors"
assert STEPS >= 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The original model, and both starts for it."""
    made = tmp_path_factory.mktemp("starts")
    base().save_pretrained(made / "original")
    for offset, save in (("adapter", loraga.save_mirrored), ("weights", loraga.save_residual)):
        model = with_lora(type(base()).from_pretrained(made / "original"), **LORA)
        loraga.initialize(model, batches("Llama"), offset=offset, progress=False)
        save(model, made / ("mirrored" if offset == "adapter" else "residual"))
    return made


@pytest.fixture(scope="module", params=["mirrored", "residual"])
def trained(request, folder, processes):
    """(kind, base that the tool loads, adapter, output of the tool)."""
    kind = request.param
    model, adapter = (
        (folder / "original", folder / "mirrored")
        if kind == "mirrored"
        else (folder / "residual", folder / "residual" / "adapter")
    )
    output = folder / f"{kind} trained"
    output.mkdir()
    processes.run(
        "other_tool", without_loraga=True, base_directory=str(model), adapter=str(adapter), output=str(output)
    )
    return kind, model, adapter, output


def logits_of(output):
    return read(output / "logits.safetensors")


def test_the_start_is_the_original_function(trained):
    kind, _, _, output = trained
    found, original = logits_of(output), eval_logits(base())

    assert relative_difference(found["start"], original) <= (2e-6 if kind == "mirrored" else 1e-5)
    assert torch.equal(found["base"], original) is (kind == "mirrored")


def test_training_moves_every_row_of_every_factor_and_the_function(trained):
    _, _, _, output = trained
    start, now = read(output / "start.safetensors"), read(output / "trained" / WEIGHTS)

    assert start.keys() == now.keys()
    for key, tensor in now.items():
        rows = (tensor - start[key]).abs().amax(dim=1 if "lora_A" in key else 0)
        assert bool((rows > 0).all()), key
    found = logits_of(output)
    assert relative_difference(found["trained"], found["start"]) > 1e-2


def test_what_the_tool_saves_is_what_it_trained_and_it_resumes(trained):
    _, _, _, output = trained
    found = logits_of(output)

    assert torch.equal(found["reloaded"], found["trained"])
    assert torch.equal(found["checkpoint"], found["trained"])
    assert torch.equal(found["resumed"], found["trained"])


def test_the_trained_adapter_still_names_the_base_that_it_is_for(trained):
    _, model, adapter, output = trained

    for directory in (adapter, output / "trained"):
        config = json.loads((directory / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(model)
        assert config["use_rslora"] is False


def test_the_trained_adapter_comes_back_to_the_original_base(trained, processes, tmp_path):
    kind, _, _, output = trained
    expected = logits_of(output)["trained"]

    model = loraga.load(type(base()).from_pretrained(output.parent / "original"), output / "trained")
    loraga.export(model, tmp_path / "exported")

    assert relative_difference(eval_logits(model), expected) <= 1e-5
    processes.run("plain_peft", without_loraga=True, directories=[tmp_path / "exported"], output=tmp_path / "logits")
    assert relative_difference(read(tmp_path / "logits")[str(tmp_path / "exported")], expected) <= 1e-5
    ranks = {tensor.shape[0] for key, tensor in read(tmp_path / "exported" / WEIGHTS).items() if "lora_A" in key}
    assert ranks == {2, 4}
    assert kind in ("mirrored", "residual")


def test_training_on_the_residual_base_is_this_packages_own_training(folder, trained, tmp_path):
    kind, _, _, output = trained
    model = with_lora(base(), **LORA)
    loraga.initialize(model, batches("Llama"), progress=False)
    trainer(model, tmp_path, max_steps=4).train()
    distance = relative_difference(logits_of(output)["trained"], eval_logits(model))

    if kind == "residual":
        assert distance <= 1e-4
    else:  # twice the step, and then a method of its own
        assert distance > 1e-2


def test_the_mirrored_start_loads_onto_a_four_bit_base(folder):
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    quantized = AutoModelForCausalLM.from_pretrained(folder / "original", quantization_config=config)
    for module in quantized.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # repacking fails on rows of half a block
    before = eval_logits(quantized)

    model = PeftModel.from_pretrained(quantized, folder / "mirrored", is_trainable=True)

    assert relative_difference(eval_logits(model), before) <= 2e-6
    assert relative_difference(before, eval_logits(base())) > 1e-2
