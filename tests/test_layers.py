import pytest
import torch
from peft import LoraConfig, get_peft_model

from loraga import AdapterError
from loraga.layers import active_adapter, lora_layers, only_adapter, require_unmerged, target_layers, without_lora
from tests import models


def test_a_plain_models_layers_are_those_that_all_linear_would_adapt():
    for name in ("Llama", "T5", "ViT", "OPT"):
        adapted = set(lora_layers(models.with_lora(models.build(name), name), "default"))
        assert set(target_layers(models.build(name))) - {"classifier"} == adapted - {"classifier"}, name
        assert "lm_head" not in adapted


def test_layers_have_the_same_names_with_and_without_an_adapter():
    base = models.build("Llama")
    plain = target_layers(base)
    wrapped = target_layers(models.with_lora(base))
    assert list(plain) == list(wrapped)
    assert all(plain[name] is wrapped[name] for name in plain)


def test_an_output_head_is_taken_if_the_adapter_targets_it():
    model = models.with_lora(models.build("Llama"), target_modules=["q_proj", "lm_head"])
    assert "lm_head" in target_layers(model)


def test_adapters_are_disabled_and_switched_without_touching_requires_grad():
    model = models.with_lora(models.build("Llama"))
    model.add_adapter("other", LoraConfig(r=1, target_modules="all-linear"))
    for parameter in model.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
    flags = [p.requires_grad for p in model.parameters()]
    batch = models.batches("Llama", 1)[0]
    with model.disable_adapter():
        base = models.logits(model, batch)
    default = models.logits(model, batch)
    with without_lora(model):
        assert torch.equal(models.logits(model, batch), base)
    with only_adapter(model, "other"):
        other = models.logits(model, batch)
    assert torch.equal(models.logits(model, batch), default)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert active_adapter(model) == "default"
    model.set_adapter("other")
    assert torch.equal(models.logits(model, batch), other)
    assert not torch.equal(other, default)


@pytest.mark.parametrize("manager", [without_lora, lambda model: only_adapter(model, "default")])
def test_flags_come_back_after_an_exception(manager):
    model = models.with_lora(models.build("Llama"))
    before = models.logits(model, models.batches("Llama", 1)[0])
    with pytest.raises(RuntimeError, match="stop"), manager(model):
        raise RuntimeError("stop")
    assert torch.equal(before, models.logits(model, models.batches("Llama", 1)[0]))
    assert not any(layer._disable_adapters for layer in lora_layers(model, "default").values())


def test_models_without_a_usable_adapter_are_refused():
    model = models.with_lora(models.build("Llama"))
    with pytest.raises(AdapterError, match="no adapter 'other'; the model has default"):
        lora_layers(model, "other")
    model.merge_adapter()
    assert len(lora_layers(model, "default")) == 14
    with pytest.raises(AdapterError, match=r"layer model.layers.0.self_attn.q_proj: an adapter is merged"):
        require_unmerged(lora_layers(model, "default"))
    with pytest.raises(AdapterError, match=r"layer model.layers.0.self_attn.q_proj: an adapter is merged"):
        target_layers(model)


def test_an_injected_adapter_is_refused():
    base = models.build("Llama")
    base.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match=r"injected by the model's own add_adapter\(\)"):
        target_layers(base)


def test_another_kind_of_adapter_is_refused():
    from peft import IA3Config

    model = get_peft_model(
        models.build("Llama"), IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    )
    with pytest.raises(AdapterError, match="not a LoRA adapter"):
        lora_layers(model, "default")


def test_two_active_adapters_must_be_told_apart():
    model = models.with_lora(models.build("Llama"))
    model.add_adapter("other", LoraConfig(r=1, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(AdapterError, match="pass adapter_name="):
        active_adapter(model)


def test_an_adapter_of_trainable_tokens_beside_the_one_meant_takes_no_part():
    model, batch = models.with_lora(models.build("Llama")), models.batches("Llama", 1)[0]
    expected = models.logits(model, batch)
    model.add_adapter("tokens", LoraConfig(r=1, target_modules=["q_proj"], trainable_token_indices=[1, 2]))
    model.set_adapter("tokens")
    for manager in (only_adapter, without_lora):
        with manager(model, "default"):
            assert torch.equal(models.logits(model, batch), expected)
