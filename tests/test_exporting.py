import functools
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import LlamaForCausalLM

import loraga
from loraga import AdapterError, SaveError
from loraga.layers import lora_layers
from loraga.offset import offset_of, trained_factors
from tests import models


def trained(**settings):
    data = models.batches("Llama")
    model = models.with_lora(models.build("Llama"), lora_dropout=0.1, **settings)
    loraga.initialize(model, data, progress=False)
    model.eval()
    models.train(model, data)
    return model, data[0], models.logits(model, data[0])


def sharded(monkeypatch):
    """Makes transformers write several files, as of a model of more than 50 GB."""
    save = functools.partialmethod(LlamaForCausalLM.save_pretrained, max_shard_size="20KB")
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)


@pytest.mark.parametrize("first", ["whole", "in shards"])
def test_a_merged_model_leaves_no_weights_of_the_model_that_was_there(first, tmp_path, monkeypatch):
    model, batch, expected = trained()
    with monkeypatch.context() as patch:
        if first == "in shards":
            sharded(patch)
        models.build("Llama", seed=3).save_pretrained(tmp_path)
    before = {path.name for path in tmp_path.glob("*.safetensors*")}
    (tmp_path / "model_notes.txt").write_text("kept")
    with monkeypatch.context() as patch:
        if first == "whole":
            sharded(patch)
        loraga.export(model, tmp_path, merge=True)
    after = {path.name for path in tmp_path.glob("*.safetensors*")}
    assert not before & after
    assert (tmp_path / "model_notes.txt").read_text() == "kept"
    merged = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert models.relative_difference(models.logits(merged, batch), expected) < 1e-5


def plain(directory):
    return PeftModel.from_pretrained(models.build("Llama"), directory).eval()


def test_an_exported_adapter_loads_with_plain_peft_and_goes_on_with_ours(tmp_path):
    model, batch, expected = trained(
        rank_pattern={"q_proj": 1}, alpha_pattern={"down_proj": 9}, modules_to_save=["lm_head"], bias="none"
    )
    exported = loraga.export(model, tmp_path / "adapter")
    assert models.relative_difference(models.logits(plain(tmp_path / "adapter"), batch), expected) < 1e-5
    again = loraga.load(models.build("Llama"), tmp_path / "adapter", is_trainable=True).eval()
    assert torch.equal(models.logits(again, batch), expected)
    assert set(exported.ranks.values()) == {2, 4}
    assert exported.relative_error == 0
    assert "plain LoRA of rank 2, 4 for the original base" in str(exported)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    models.train(again, [batch])
    assert not torch.equal(models.logits(again, batch), expected)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_compressing_costs_what_it_says(rank, tmp_path):
    model, batch, expected = trained(alpha_pattern={"down_proj": 9})
    changes = {}
    for name, layer in lora_layers(model, "default").items():
        now, start = trained_factors(layer, "default"), offset_of(layer, "default")
        changes[name] = layer.scaling["default"] * (
            now.B.double() @ now.A.double() - start.B.double() @ start.A.double()
        )
    exported = loraga.export(model, tmp_path, rank=rank)
    loaded = plain(tmp_path)
    for name, layer in lora_layers(loaded, "default").items():
        now = trained_factors(layer, "default")
        found = layer.scaling["default"] * now.B.double() @ now.A.double()
        values = torch.linalg.svdvals(changes[name])
        optimum = float(values[rank:].norm() / values.norm())
        assert float((found - changes[name]).norm() / changes[name].norm()) == pytest.approx(optimum, abs=1e-5)
        assert exported.relative_errors[name] == pytest.approx(optimum, abs=1e-5)
        assert layer.r["default"] == rank
    assert not (tmp_path / "loraga.json").exists()
    assert json.loads(json.dumps(exported.to_dict()))["ranks"] == exported.ranks
    difference = models.relative_difference(models.logits(loaded, batch), expected)
    if rank == 4:  # A, A0 and B, B0: everything
        assert difference < 1e-5
    else:
        assert f"compressing lost {exported.relative_error:.2%}" in str(exported)
        assert 1e-4 < difference < 1


def test_compressing_keeps_fully_trained_modules(tmp_path):
    model, batch, expected = trained(modules_to_save=["lm_head"])
    loraga.export(model, tmp_path, rank=4)
    assert models.relative_difference(models.logits(plain(tmp_path), batch), expected) < 1e-5


def test_a_merged_model_stands_alone_and_the_model_stays(tmp_path):
    model, batch, expected = trained()
    exported = loraga.export(model, tmp_path, merge=True)
    merged = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert models.relative_difference(models.logits(merged, batch), expected) < 1e-5
    assert torch.equal(models.logits(model, batch), expected)
    assert str(exported) == f"merged model written to {tmp_path}"


@pytest.mark.parametrize("active", ["default", "other"])
@pytest.mark.parametrize("name", ["default", "other"])
def test_a_merged_adapter_has_its_own_head_whichever_is_active(name, active, tmp_path):
    """PEFT's merge takes the modules_to_save of the active adapter."""
    model, batch, _ = trained(modules_to_save=["lm_head"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    for key, parameter in model.named_parameters():
        if ".lora_B.other." in key:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
    model.set_adapter(name)
    expected = models.logits(model, batch)
    model.set_adapter(active)
    before = models.logits(model, batch)
    loraga.export(model, tmp_path, merge=True, adapter_name=name)
    merged = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert models.relative_difference(models.logits(merged, batch), expected) < 1e-5
    assert torch.equal(models.logits(model, batch), before)
    assert model.active_adapters == [active]


def test_another_adapter_is_exported_by_its_name(tmp_path):
    model, batch, expected = trained()
    model.add_adapter("copy", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".copy." in name:
            parameter.data.copy_(model.get_parameter(name.replace(".copy.", ".default.")))
    loraga.export(model, tmp_path, adapter_name="copy")
    assert models.relative_difference(models.logits(plain(tmp_path), batch), expected) < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "loraga.json",
    ]


def test_a_plain_lora_is_exported_and_loaded_as_it_is(tmp_path):
    model = models.with_lora(models.build("Llama"))
    models.train(model, models.batches("Llama"))
    batch = models.batches("Llama", 1)[0]
    loraga.export(model, tmp_path)
    again = loraga.load(models.build("Llama"), tmp_path)
    assert torch.equal(models.logits(again, batch), models.logits(model, batch))
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT takes a bias for an unsharded factor
def test_compressing_keeps_the_bias_of_b(tmp_path):
    data = models.batches("Qwen2")
    model = models.with_lora(models.build("Qwen2"), target_modules=["q_proj", "v_proj"], lora_bias=True)
    loraga.initialize(model, data, progress=False)
    models.train(model.eval(), data)
    loraga.export(model, tmp_path, rank=4)
    loaded = PeftModel.from_pretrained(models.build("Qwen2"), tmp_path).eval()
    assert models.relative_difference(models.logits(loaded, data[0]), models.logits(model, data[0])) < 1e-5


def test_a_merged_model_replaces_an_adapter_in_its_directory(tmp_path):
    model, batch, expected = trained()
    loraga.export(model, tmp_path)
    loraga.export(model, tmp_path, merge=True)
    merged = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert models.relative_difference(models.logits(merged, batch), expected) < 1e-5


def test_merging_a_tied_head_is_refused(tmp_path):
    base = models.build("Llama")
    base.lm_head.weight = base.model.embed_tokens.weight
    model = models.with_lora(base, target_modules=["lm_head"])
    with pytest.raises(SaveError, match="layer lm_head: its weight is tied"):
        loraga.export(model, tmp_path, merge=True)


def test_what_cannot_be_exported_or_loaded_is_refused(tmp_path):
    model, _, _ = trained()
    with pytest.raises(AdapterError, match="LlamaForCausalLM is not a PeftModel"):
        loraga.export(models.build("Llama"), tmp_path)
    with pytest.raises(SaveError, match="rank= and merge=True exclude each other"):
        loraga.export(model, tmp_path, rank=2, merge=True)
    with pytest.raises(AdapterError, match="rank is 0"):
        loraga.export(model, tmp_path, rank=0)
    with pytest.raises(AdapterError, match="there is no adapter 'other'"):
        loraga.export(model, tmp_path, adapter_name="other")
    with pytest.raises(SaveError, match=r"holds no adapter_config.json"):
        loraga.load(models.build("Llama"), tmp_path / "nothing")
    dora = models.with_lora(models.build("Llama"), use_dora=True)
    with pytest.raises(AdapterError, match="only plain LoRA on a linear layer can be compressed"):
        loraga.export(dora, tmp_path / "b", rank=1)


@pytest.mark.filterwarnings("ignore:kept as plain LoRA:UserWarning", "ignore:.*singular directions:UserWarning")
def test_experts_are_merged_but_not_compressed(tmp_path):
    """The rows of an expert's A and the columns of its B do not lie in the same order, so B A is not its change."""
    data = models.batches("Mixtral, experts")
    model = models.with_lora(models.build("Mixtral"), "Mixtral, experts")
    loraga.initialize(model, data, on_missing="lora", progress=False)
    model.eval()
    models.train(model, data)
    with pytest.raises(AdapterError, match=r"layer model.layers.0.mlp.experts: only plain LoRA on a linear layer"):
        loraga.export(model, tmp_path / "small", rank=1)
    expected = models.logits(model, data[0])
    assert models.relative_difference(models.logits(models.build("Mixtral"), data[0]), expected) > 1e-2
    loraga.export(model, tmp_path / "merged", merge=True)
    merged = type(models.build("Mixtral")).from_pretrained(tmp_path / "merged")
    assert models.relative_difference(models.logits(merged, data[0]), expected) < 1e-5
    assert torch.equal(models.logits(model, data[0]), expected)


def test_a_directory_that_cannot_be_written_stays_as_it_was(tmp_path):
    model, batch, expected = trained()
    loraga.export(model, tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    script = textwrap.dedent(
        """
        import resource, signal, sys
        import loraga
        from tests import models
        from tests.test_exporting import trained
        model, _, _ = trained()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            loraga.export(model, sys.argv[1])
        except loraga.SaveError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "adapter")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert "could not be written" in done.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert models.relative_difference(models.logits(plain(tmp_path / "adapter"), batch), expected) < 1e-5
