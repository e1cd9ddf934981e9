"""Adapters of quantised bases: saved, read back onto the same base and the unquantised one, and merged or refused."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import loraga
from loraga.layers import lora_layers
from loraga.offset import offset_of, trained_factors
from tests.integration.common import eval_logits, train_logits
from tests.models import batches, relative_difference, train
from tests.quantised import KINDS, RUNNING, base_bytes, float_model, with_lora


def trained(base, offset="adapter"):
    model = with_lora(base)
    loraga.initialize(model, batches("Llama"), offset=offset, progress=False)
    model.train()
    train(model, batches("Llama"), 4)
    return model


@pytest.mark.parametrize("offset", ["adapter", "none"])
@pytest.mark.parametrize("save", ["save_pretrained", "export"])
def test_an_adapter_loads_onto_the_same_quantised_base(quantised, offset, save, tmp_path):
    model = trained(quantised(), offset)
    logits = train_logits(model)
    assert relative_difference(logits, train_logits(quantised())) > 1e-3
    if save == "export":
        loraga.export(model, tmp_path)
    else:
        model.save_pretrained(str(tmp_path))
    plain = PeftModel.from_pretrained(quantised(), str(tmp_path))
    assert type(plain).__mro__[0].__module__.startswith("peft.")
    ours = loraga.load(quantised(), tmp_path)
    assert relative_difference(train_logits(plain), logits) < 1e-5
    assert torch.equal(train_logits(ours), logits)
    in_eval = eval_logits(model)  # the last, because bitsandbytes may repack weights
    base = quantised()
    base_in_training = train_logits(base)
    kernels = relative_difference(eval_logits(base), base_in_training)
    assert relative_difference(eval_logits(plain), in_eval) <= 1e-5 + kernels
    assert torch.equal(eval_logits(ours), in_eval)


@pytest.mark.parametrize("offset", ["adapter", "none"])
def test_an_adapter_loads_onto_the_unquantised_base(quantised, directory, offset, tmp_path):
    """What it must give there is the float model with eta (B A - B0 A0) added to its weights."""
    model = trained(quantised(), offset)
    model.save_pretrained(str(tmp_path))
    reference = float_model()
    with torch.no_grad():
        for name, layer in lora_layers(model, "default").items():
            now = trained_factors(layer, "default")
            change = now.B.double() @ now.A.double()
            if offset == "adapter":
                start = offset_of(layer, "default")
                change -= start.B.double() @ start.A.double()
            weight = reference.get_submodule(name).weight
            weight.copy_(weight.double() + layer.scaling["default"] * change)
    expected = eval_logits(reference)
    assert relative_difference(expected, eval_logits(float_model())) > 1e-3
    bases = [AutoModelForCausalLM.from_pretrained(directory) for _ in range(2)]
    for loaded in (PeftModel.from_pretrained(bases[0], str(tmp_path)), loraga.load(bases[1], tmp_path)):
        assert relative_difference(eval_logits(loaded), expected) < 1e-5


def test_a_loaded_adapter_trains_on_as_if_it_had_not_been_saved(quantised, tmp_path):
    model = trained(quantised())
    model.save_pretrained(str(tmp_path))
    resumed = loraga.load(quantised(), tmp_path, is_trainable=True)
    resumed.train()
    for each in (model, resumed):
        train(each, batches("Llama", seed=8), 2)
    assert torch.equal(train_logits(resumed), train_logits(model))


# PEFT says so of every merge into bitsandbytes' layers
@pytest.mark.filterwarnings("ignore:Merge lora module to .* may get different generations:UserWarning")
def test_merging_takes_the_offset_along_or_is_refused(kind, quantised, tmp_path):
    """Where PEFT merges, the merged base is the one that it makes of the plain LoRA which was saved."""
    model = trained(quantised())
    model.save_pretrained(str(tmp_path))
    before = base_bytes(model)
    if not kind.merges:
        for merge in (model.merge_adapter, model.merge_and_unload):
            with pytest.raises(loraga.OffsetError, match=r"would merge 'default' without its offset; export it"):
                merge()
        assert base_bytes(model) == before
        return
    plain = PeftModel.from_pretrained(quantised(), str(tmp_path))
    for each in (model, plain):
        each.merge_adapter()
    assert relative_difference(train_logits(model), train_logits(quantised())) > 1e-3
    assert relative_difference(train_logits(model), train_logits(plain)) < 1e-5


@pytest.mark.filterwarnings("ignore:(Merge|Unmerge) lora module to .* may get different generations:UserWarning")
@pytest.mark.parametrize("name", [name for name in RUNNING if name.startswith(("NF4", "FP4"))])
def test_unmerging_gives_a_4_bit_base_back_bit_for_bit(name, directory):
    model = trained(KINDS[name].make(directory))
    before, logits = base_bytes(model), train_logits(model)
    for _ in range(2):
        model.merge_adapter()
        assert base_bytes(model) != before
        model.unmerge_adapter()
        assert base_bytes(model) == before
    assert torch.equal(train_logits(model), logits)
    train(model, batches("Llama"), 1)  # a gradient passes through it as before
    assert relative_difference(train_logits(model), logits) > 1e-4


def test_a_merged_model_is_not_written(quantised, tmp_path):
    model = with_lora(quantised())
    loraga.initialize(model, batches("Llama"), progress=False)
    with pytest.raises(loraga.SaveError, match="quantised"):
        loraga.export(model, tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()
