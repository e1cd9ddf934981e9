"""What else PEFT does with an adapter: merging, copying, several adapters, precisions, every setting at once."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel

import loraga
from tests.integration.common import (
    STEPS,
    adapter_state,
    assert_moved,
    assert_same,
    base,
    eval_logits,
    read,
    started,
    train_logits,
    trainer,
)
from tests.models import batches, relative_difference, train, with_lora


def trained(steps=3, **settings):
    model = started(**settings).eval()
    train(model, batches("Llama"), steps)
    return model


def weights(model):
    """The base weights, by the base's names."""
    return {
        key.replace("base_model.model.", "").replace(".base_layer", ""): tensor.clone()
        for key, tensor in model.state_dict().items()
        if "lora_" not in key
    }


# ---- merging


@pytest.mark.parametrize("safe_merge", [False, True])
def test_a_merged_model_is_a_plain_one_with_the_trained_function(safe_merge):
    model = trained()
    expected = eval_logits(model)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert type(merged) is type(base())
    assert not [name for name in merged.state_dict() if "lora" in name]
    assert relative_difference(eval_logits(merged), expected) <= 1e-5
    assert relative_difference(expected, eval_logits(base())) > 1e-3


def test_merging_an_untrained_start_changes_nothing():
    assert_same(weights(started().merge_and_unload()), weights(base()))


def test_merge_adapter_and_unmerge_adapter_return_bit_for_bit_to_where_they_began():
    model = trained()
    expected, before = eval_logits(model), weights(model)
    model.merge_adapter()
    assert relative_difference(eval_logits(model), expected) <= 1e-5
    assert_moved(before, weights(model))
    model.unmerge_adapter()
    assert_same(weights(model), before)
    assert torch.equal(eval_logits(model), expected)


def test_what_is_saved_while_merged_is_the_trained_adapter(tmp_path):
    model = trained()
    expected = eval_logits(model)
    model.merge_adapter()
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(eval_logits(loraga.load(base(), tmp_path / "saved")), expected)


def test_a_merged_export_is_the_trained_model(tmp_path):
    model = trained()
    loraga.export(model, tmp_path, merge=True)
    reloaded = type(base()).from_pretrained(tmp_path)
    assert relative_difference(eval_logits(reloaded), eval_logits(model)) <= 1e-5
    assert relative_difference(eval_logits(model), eval_logits(base())) > 1e-3


# ---- copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_the_same_model_and_saves_its_own_weights(duplicate, tmp_path):
    model = trained()
    expected, state = eval_logits(model), adapter_state(model)
    other = duplicate(model)
    assert type(other) is type(model)
    assert isinstance(other, PeftModel)
    assert torch.equal(eval_logits(other), expected)
    assert torch.equal(train_logits(other), train_logits(model))
    train(other, batches("Llama"), 2)
    other.save_pretrained(tmp_path)
    assert_same(adapter_state(model), state)
    assert torch.equal(eval_logits(model), expected)
    reloaded = loraga.load(base(), tmp_path)
    assert torch.equal(eval_logits(reloaded), eval_logits(other))
    assert_moved(state, adapter_state(reloaded))


# ---- several adapters


def two_adapters():
    """A trained first adapter and a second of another rank, initialised beside it and trained too."""
    model = trained()
    config = LoraConfig(r=3, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"], lora_dropout=0.1)
    model.add_adapter("second", config)
    model.set_adapter("second")
    return model


def test_a_second_adapter_starts_beside_a_trained_first(processes, tmp_path):
    model = two_adapters()
    model.set_adapter("default")
    first = eval_logits(model)
    model.set_adapter("second")
    report = loraga.initialize(model, batches("Llama", seed=2), adapter_name="second", progress=False)
    assert report.function_change == 0
    assert torch.equal(train_logits(model), eval_logits(base()))
    train(model, batches("Llama"), 3)
    second = eval_logits(model)
    assert relative_difference(second, first) > 1e-3
    model.set_adapter("default")
    assert torch.equal(eval_logits(model), first)

    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["r"] == 6
    reloaded = loraga.load(base(), tmp_path)
    reloaded.load_adapter(tmp_path / "second", "second")
    assert torch.equal(eval_logits(reloaded), first)
    reloaded.set_adapter("second")
    assert torch.equal(eval_logits(reloaded), second)
    alone = loraga.load(base(), tmp_path / "second", adapter_name="second", is_trainable=True)
    assert torch.equal(eval_logits(alone), second)
    expected = {tmp_path: first, tmp_path / "second": second}
    processes.run("plain_peft", without_loraga=True, directories=list(expected), output=tmp_path / "logits")
    for directory, logits in expected.items():
        assert relative_difference(read(tmp_path / "logits")[str(directory)], logits) <= 1e-5


def test_a_run_with_two_adapters_resumes_bit_for_bit(tmp_path):
    def make():
        model = two_adapters()
        loraga.initialize(model, batches("Llama", seed=2), adapter_name="second", progress=False)
        return model

    whole = make()
    trainer(whole, tmp_path / "whole", max_steps=4).train()
    resumed = make()
    trainer(resumed, tmp_path / "resumed", max_steps=4).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")
    )
    for name in ("default", "second"):
        assert_same(adapter_state(resumed, name), adapter_state(whole, name))
    assert torch.equal(eval_logits(resumed), eval_logits(whole))


def test_a_deleted_adapter_leaves_nothing_and_its_name_can_be_used_again():
    model = two_adapters()
    loraga.initialize(model, batches("Llama", seed=2), adapter_name="second", progress=False)
    model.set_adapter("default")
    first = eval_logits(model)
    model.delete_adapter("second")
    assert not [key for key in model.state_dict() if "second" in key]
    assert torch.equal(eval_logits(model), first)
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=4, use_rslora=True, target_modules=["q_proj"]))
    model.set_adapter("second")
    assert torch.equal(eval_logits(model), eval_logits(base()))  # no offset is left over
    assert loraga.initialize(model, batches("Llama"), progress=False).function_change == 0
    model.set_adapter("default")
    assert torch.equal(eval_logits(model), first)


@pytest.mark.parametrize("combination", ["linear", "cat", "svd"])
def test_weighted_sums_of_adapters_are_refused(combination):
    model = started()
    with pytest.raises(loraga.OffsetError, match="would ignore the offset of"):
        model.add_weighted_adapter(["default"], [1.0], "sum", combination_type=combination)


# ---- loading and writing over what is there


@pytest.fixture
def plain(tmp_path):
    """(directory, logits) of an adapter that this package never saw, of the same shape."""
    model = with_lora(base(), lora_dropout=0.1)
    train(model, batches("Llama"), 3)
    model.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain", eval_logits(model)


def test_loading_a_plain_adapter_drops_the_offset(plain):
    directory, expected = plain
    model = trained()
    model.load_adapter(directory, "default", is_trainable=True)
    assert torch.equal(eval_logits(model), expected)
    assert not [key for key in model.state_dict() if "lora_offset" in key]


def test_a_plain_adapter_saved_over_one_with_a_start_is_a_plain_one(plain, tmp_path):
    directory, expected = plain
    model = trained()
    model.save_pretrained(tmp_path / "saved")
    model.load_adapter(directory, "default", is_trainable=True)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(eval_logits(loraga.load(base(), tmp_path / "saved")), expected)
    assert torch.equal(eval_logits(PeftModel.from_pretrained(base(), str(tmp_path / "saved"))), expected)


def test_a_compressed_export_over_a_saved_adapter_is_a_plain_one(tmp_path):
    model = trained()
    model.save_pretrained(tmp_path)
    loraga.export(model, tmp_path, rank=4)  # both factors' span: nothing is lost
    assert relative_difference(eval_logits(loraga.load(base(), tmp_path)), eval_logits(model)) <= 1e-5


def test_saving_one_adapter_leaves_what_belongs_to_another(tmp_path):
    model = two_adapters()
    model.save_pretrained(tmp_path)
    expected = eval_logits(loraga.load(base(), tmp_path))
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    assert torch.equal(eval_logits(loraga.load(base(), tmp_path)), expected)


def test_other_ranks_write_nothing_and_disturb_nothing(tmp_path):
    in_progress = tmp_path / ".saved.saving-main"  # what the main process is writing at the same time
    in_progress.mkdir()
    started().save_pretrained(tmp_path / "saved", is_main_process=False)
    assert in_progress.is_dir()
    assert not any((tmp_path / "saved").iterdir())


def test_an_adapter_with_a_start_saved_over_a_plain_one_is_whole(plain):
    directory, _ = plain
    model = trained()
    model.save_pretrained(directory)
    assert torch.equal(eval_logits(loraga.load(base(), directory)), eval_logits(model))


def test_another_start_is_not_loaded_into_folded_weights_and_the_model_stays(tmp_path):
    trained(seed=4, gamma=64).save_pretrained(tmp_path / "other")
    model = started(offset="weights", lora_dropout=0.0)
    train(model, batches("Llama"), 2)
    model.save_pretrained(tmp_path / "own")
    own, state = eval_logits(model), adapter_state(model)
    with pytest.raises(loraga.OffsetError, match="started elsewhere"):
        model.load_adapter(tmp_path / "other", "default")
    assert_same(adapter_state(model), state)
    assert torch.equal(eval_logits(model), own)
    train(model, batches("Llama"), 1)
    model.load_adapter(tmp_path / "own", "default")
    assert torch.equal(eval_logits(model), own)
    assert relative_difference(eval_logits(loraga.load(base(), tmp_path / "own")), own) <= 1e-5


def test_a_plain_adapter_is_not_loaded_into_folded_weights(plain):
    directory, _ = plain
    model = started(offset="weights", lora_dropout=0.0)
    before = eval_logits(model)
    with pytest.raises(loraga.OffsetError, match="folded into the base weight"):
        model.load_adapter(directory, "default")
    assert torch.equal(eval_logits(model), before)


# ---- precisions


def half_precision(autocast_adapter_dtype):
    from peft import get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, use_rslora=True, target_modules="all-linear", lora_dropout=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return get_peft_model(base().to(torch.bfloat16), config, autocast_adapter_dtype=autocast_adapter_dtype)


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16])
def test_a_half_precision_base_keeps_its_function_bit_for_bit(adapters, tmp_path):
    original = base().to(torch.bfloat16)
    model = half_precision(adapters == torch.float32)
    loraga.initialize(model, batches("Llama"), progress=False)
    assert {tensor.dtype for tensor in adapter_state(model).values()} == {adapters}
    assert torch.equal(eval_logits(model), eval_logits(original))
    assert torch.equal(train_logits(model), eval_logits(original))
    train(model, batches("Llama"), 3)
    trained_logits = eval_logits(model)
    with model.disable_adapter():
        assert torch.equal(eval_logits(model), eval_logits(original))
    model.save_pretrained(tmp_path)
    in_peft = PeftModel.from_pretrained(
        base().to(torch.bfloat16), str(tmp_path), autocast_adapter_dtype=adapters == torch.float32
    )
    # bfloat16 has 8 bits: one sum over 2r terms rounds differently from the difference of two sums over r
    assert relative_difference(eval_logits(in_peft), trained_logits) <= 2**-6
    assert relative_difference(trained_logits, eval_logits(original)) > 2**-4
    saved, state = read(tmp_path / "adapter_model.safetensors"), adapter_state(model)
    for key in (key for key in state if key.endswith("lora_A.weight")):
        A, A0 = state[key], state[key.replace("lora_A.weight", "lora_offset_A")]
        assert torch.equal(saved[key], torch.cat([A, A0]))
    state = adapter_state(model)
    train(model, batches("Llama"), 1)
    model.load_adapter(tmp_path, "default", is_trainable=True)  # as Trainer does to resume
    assert_same(adapter_state(model), state)
    assert torch.equal(eval_logits(model), trained_logits)


def test_autocast_keeps_the_start_bit_for_bit():
    model, original, later = started(), base(), trained()
    with torch.autocast("cpu", torch.bfloat16):
        expected = eval_logits(original)
        assert torch.equal(eval_logits(model), expected)
        assert torch.equal(train_logits(model), expected)
        assert relative_difference(expected, eval_logits(later)) > 1e-2
    assert not torch.equal(expected, eval_logits(original))


# ---- every setting at once

EVERYTHING = {
    "r": 3,
    "lora_alpha": 5,
    "use_rslora": True,
    "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 4},
    "alpha_pattern": {"v_proj": 7, "q_proj": 3},
    "modules_to_save": ["lm_head"],
    "bias": "lora_only",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
}


def trainable_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_every_setting_at_once_survives_every_way_of_saving(processes, tmp_path):
    model = started(name="Qwen2", **EVERYTHING)
    assert torch.equal(train_logits(model), eval_logits(base("Qwen2")))
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer(model, tmp_path / "run").train()
    for part in (".lora_A.", ".lora_B.", "modules_to_save", "q_proj.base_layer.bias"):
        moved = [not torch.equal(p, start[name]) for name, p in model.named_parameters() if part in name]
        assert moved
        assert all(moved)
    model.save_pretrained(tmp_path / "saved")
    loraga.export(model, tmp_path / "exported")
    directories = [tmp_path / "run" / f"checkpoint-{STEPS}", tmp_path / "saved", tmp_path / "exported"]
    processes.run("plain_peft", without_loraga=True, directories=directories, output=tmp_path / "logits", name="Qwen2")
    expected = eval_logits(model)
    for directory in directories:
        assert relative_difference(read(tmp_path / "logits")[str(directory)], expected) <= 1e-5
        for is_trainable in (False, True):
            loaded = loraga.load(base("Qwen2"), directory, is_trainable=is_trainable)
            assert torch.equal(eval_logits(loaded), expected)
            in_peft = PeftModel.from_pretrained(base("Qwen2"), str(directory), is_trainable=is_trainable)
            assert trainable_names(loaded) == trainable_names(in_peft)
        assert trainable_names(loaded) == trainable_names(model)
        assert_same(adapter_state(loaded), adapter_state(model))
        config = json.loads((directory / "adapter_config.json").read_text())
        assert config["use_rslora"] is False
        assert config["init_lora_weights"] is True
    merged = loraga.export(model, tmp_path / "merged", merge=True)
    assert merged.kind == "merged"
    reloaded = type(base("Qwen2")).from_pretrained(tmp_path / "merged")
    assert relative_difference(eval_logits(reloaded), expected) <= 1e-5
    loraga.export(model, tmp_path / "compressed", rank=8)
    assert relative_difference(eval_logits(loraga.load(base("Qwen2"), tmp_path / "compressed")), expected) <= 1e-5


def test_every_setting_at_once_resumes_bit_for_bit(tmp_path):
    whole = started(name="Qwen2", **EVERYTHING)
    trainer(whole, tmp_path / "whole", max_steps=4).train()
    resumed = loraga.load(base("Qwen2"), tmp_path / "whole" / "checkpoint-2", is_trainable=True)
    trainer(resumed, tmp_path / "resumed", max_steps=4).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")
    )
    assert_same(adapter_state(resumed), adapter_state(whole))
