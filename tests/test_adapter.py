import copy
import itertools
import json
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM
from safetensors.torch import load_file, save_file

import loraga
from loraga import AdapterError, OffsetError, SaveError
from loraga.adapter import OffsetModel, carry
from loraga.checksum import tensor_checksum
from loraga.layers import lora_layers
from tests import models


def started(**settings):
    data = models.batches("Llama")
    model = models.with_lora(models.build("Llama"), **settings)
    loraga.initialize(model, data, progress=False)
    return model, data


def test_the_model_stays_of_its_own_class():
    model, _ = started(task_type="CAUSAL_LM")
    assert isinstance(model, PeftModelForCausalLM)
    assert isinstance(model, OffsetModel)
    assert type(model).__name__ == "PeftModelForCausalLM"
    assert carry(model) is model
    assert type(models.with_lora(models.build("Llama"), task_type="CAUSAL_LM")) is PeftModelForCausalLM


def test_copies_save_their_own_weights(tmp_path):
    model, data = started()
    for number, other in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        models.train(other, data)
        other.save_pretrained(tmp_path / str(number))
        plain = PeftModel.from_pretrained(models.build("Llama"), tmp_path / str(number))
        assert models.relative_difference(models.logits(plain, data[0]), models.logits(other, data[0])) < 1e-5
        assert not torch.equal(models.logits(other, data[0]), models.logits(model, data[0]))


def test_the_directory_says_what_it_is(tmp_path):
    model, _ = started(rank_pattern={"q_proj": 3})
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["use_rslora"], config["init_lora_weights"]) == (4, False, True)
    assert config["lora_alpha"] == pytest.approx(4 / 2**0.5 * 4)
    state = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert state[key].shape == (6, 32)
    assert not any("offset" in name for name in state)
    assert json.loads((tmp_path / "loraga_report.json").read_text())["scheme"] == "lora_ga"
    assert json.loads((tmp_path / "loraga.json").read_text())["ranks"]["model.layers.0.self_attn.q_proj"] == 3


@pytest.mark.parametrize("offset", ["adapter", "none"])
def test_the_report_goes_on_with_the_adapter(tmp_path, offset):
    model, data = models.with_lora(models.build("Llama")), models.batches("Llama")
    loraga.initialize(model, data, offset=offset, progress=False)
    model.save_pretrained(tmp_path / "first")
    report = json.loads((tmp_path / "first" / "loraga_report.json").read_text())
    loraga.load(models.build("Llama"), tmp_path / "first").save_pretrained(tmp_path / "loaded")
    resumed, _ = started()
    resumed.load_adapter(tmp_path / "first", "default")
    resumed.save_pretrained(tmp_path / "resumed")
    for name in ("loaded", "resumed"):
        assert json.loads((tmp_path / name / "loraga_report.json").read_text()) == report
    (tmp_path / "first" / "loraga_report.json").unlink()
    resumed.load_adapter(tmp_path / "first", "default")  # of this start nothing is known
    resumed.save_pretrained(tmp_path / "resumed")
    assert not (tmp_path / "resumed" / "loraga_report.json").exists()


def test_a_model_card_is_completed_and_other_files_stay(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMy words.")
    (tmp_path / "notes.txt").write_text("kept")
    model, _ = started()
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "My words." in card
    assert "license: mit" in card
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_a_checkpoint_is_loaded_into_the_adapter_that_is_there(tmp_path):
    model, data = started()
    models.train(model, data)
    expected = models.logits(model, data[0])
    model.save_pretrained(tmp_path)
    models.train(model, data)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert torch.equal(models.logits(model, data[0]), expected)
    assert lora_layers(model, "default")["model.layers.0.mlp.up_proj"].r["default"] == 2
    elsewhere, _ = started()  # same shapes, another start: the checkpoint's own is what counts
    for layer in lora_layers(elsewhere, "default").values():
        layer.lora_offset_A["default"].mul_(3)
    elsewhere.load_adapter(tmp_path, "default", is_trainable=True)
    assert torch.equal(models.logits(elsewhere, data[0]), expected)


def test_a_checkpoint_is_loaded_as_a_new_adapter(tmp_path):
    model, data = started()
    models.train(model, data)
    expected = models.logits(model, data[0])
    model.save_pretrained(tmp_path)
    other, _ = started()
    other.load_adapter(tmp_path, "second", is_trainable=True)
    other.set_adapter("second")
    assert torch.equal(models.logits(other, data[0]), expected)


def test_a_plain_lora_takes_the_offset_away(tmp_path):
    plain = models.with_lora(models.build("Llama"))
    data = models.batches("Llama")
    models.train(plain, data)
    plain.save_pretrained(tmp_path)
    model, _ = started()
    model.load_adapter(tmp_path, "default")
    assert torch.equal(models.logits(model, data[0]), models.logits(plain, data[0]))
    folded = models.with_lora(models.build("Llama"))
    loraga.initialize(folded, data, offset="weights", progress=False)
    with pytest.raises(OffsetError, match=r"layer model\S+: the offset is folded into the base weight"):
        folded.load_adapter(tmp_path, "default")


def test_a_checkpoint_of_another_start_is_refused_by_a_folded_base(tmp_path):
    model, data = started()
    model.save_pretrained(tmp_path)
    folded = models.with_lora(models.build("Llama"))
    loraga.initialize(folded, data, offset="weights", gamma=64, progress=False)
    with pytest.raises(OffsetError, match=r"layer model\S+ started elsewhere than what is folded"):
        folded.load_adapter(tmp_path, "default")


def test_a_directory_that_does_not_fit_is_refused(tmp_path):
    model, _ = started()
    model.save_pretrained(tmp_path)
    wider, _ = started(r=3)
    with pytest.raises(
        SaveError, match=r"layer model\S+ of rank 2, which loraga\.json names, is not in adapter 'default'"
    ):
        wider.load_adapter(tmp_path, "default")


def test_saving_in_ways_that_lose_something_is_refused(tmp_path):
    model, _ = started()
    with pytest.raises(SaveError, match="safetensors only"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(SaveError, match="path_initial_model_for_weight_conversion is not needed"):
        model.save_pretrained(tmp_path, path_initial_model_for_weight_conversion="start")
    with pytest.raises(OffsetError, match="add_weighted_adapter would ignore the offset of 'default'"):
        model.add_weighted_adapter(["default"], [1.0], "sum")


def test_an_adapter_from_the_same_config_object_gets_the_offset_and_another_does_not():
    model, data = started()
    model.add_adapter("twin", model.peft_config["default"])
    model.add_adapter("stranger", copy.deepcopy(model.peft_config["default"]))
    layer = lora_layers(model, "default")["model.layers.0.mlp.up_proj"]
    assert set(layer.lora_offset_A) == {"default", "twin"}
    assert not hasattr(layer.lora_variant.get("stranger"), "merge_safe")
    model.set_adapter("twin")
    assert torch.equal(models.logits(model, data[0]), models.logits(models.build("Llama"), data[0]))
    model.delete_adapter("default")
    assert set(layer.lora_offset_A) == {"twin"}
    assert set(layer.lora_variant) == {"twin"}


@pytest.mark.parametrize("mode", [True, False])
def test_an_adapter_from_the_same_config_object_has_its_dropout_in_the_models_mode(mode):
    model, _ = started(lora_dropout=0.5)
    model.train(mode)
    model.add_adapter("twin", model.peft_config["default"])
    modes = {layer.lora_dropout["twin"].training for layer in lora_layers(model, "twin").values()}
    assert modes == {mode}


def test_offsets_are_not_broadcast():
    model, _ = started()
    ignored = model._ddp_params_and_buffers_to_ignore
    assert len(ignored) == 28
    assert set(ignored) == {name for name, _ in model.named_buffers() if "offset" in name}


def test_a_load_that_fails_leaves_the_policy_as_it_was(tmp_path):
    model, data = started()
    models.train(model, data)
    expected = models.logits(model, data[0])
    model.save_pretrained(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match="empty"):
        model.load_adapter(tmp_path / "empty", "default")
    assert torch.equal(models.logits(model, data[0]), expected)
    models.with_lora(models.build("Llama"), r=3).save_pretrained(tmp_path / "wide")
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path / "wide", "default")
    assert torch.equal(models.logits(model, data[0]), expected)
    weights = tmp_path / "good" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)safetensor|metadata|incomplete|header"):
        model.load_adapter(tmp_path / "good", "new")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(models.logits(model, data[0]), expected)


def test_what_a_load_wrote_before_it_failed_is_put_back(tmp_path):
    """One layer is of another rank, which PEFT finds when it has written the others."""
    model, data = started()
    models.train(model, data)
    other = models.with_lora(models.build("Llama"), rank_pattern={"layers.1.mlp.down_proj": 3})
    models.train(other, data)
    other.save_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path, "default")
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def folded(**settings):
    data, base = models.batches("Llama"), models.build("Llama")
    model = models.with_lora(base)
    loraga.initialize(model, data, offset="weights", progress=False, **settings)
    return model, data


def test_a_base_that_is_lost_to_a_folded_offset_is_said_or_restored():
    original = models.logits(models.build("Llama"), models.batches("Llama", 1)[0])
    for method, merged in itertools.product(("unload", "delete_adapter"), (False, True)):
        model, data = folded(keep_original=True)
        if merged:
            model.merge_adapter()
        left = getattr(model, method)(*(["default"] if method == "delete_adapter" else [])) or model.base_model.model
        assert torch.equal(models.logits(left, data[0]), original)
        model, _ = folded()
        with pytest.warns(UserWarning, match=rf"{method}\(\) gives the changed base"):
            getattr(model, method)(*(["default"] if method == "delete_adapter" else []))


def test_another_adapter_on_a_changed_base_is_refused():
    model, data = folded()
    with pytest.raises(OffsetError, match="another adapter would not be for the original base"):
        model.add_adapter("other", LoraConfig(r=1, target_modules=["q_proj"]))
    model.add_adapter("ref", model.peft_config["default"])  # the same start: TRL's reference
    model.set_adapter("ref")
    original = models.logits(models.build("Llama"), data[0])
    assert models.relative_difference(models.logits(model, data[0]), original) < 1e-5
    two = models.with_lora(models.build("Llama"))
    two.add_adapter("other", LoraConfig(r=1, target_modules=["q_proj"]))
    with pytest.raises(OffsetError, match=r"the model's other adapters \(other\)"):
        loraga.initialize(two, data, offset="weights", progress=False)


def test_weighted_sums_of_adapters_without_an_offset_are_pefts():
    model = models.with_lora(models.build("Llama"))
    loraga.initialize(model, models.batches("Llama"), offset="none", progress=False)
    model.add_weighted_adapter(["default"], [1.0], "sum", combination_type="cat")
    assert "sum" in model.peft_config


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("offset", ["adapter", "weights", "none"])
def test_a_merged_model_saves_the_same_files(tmp_path, offset):
    data = models.batches("Llama")
    model = models.with_lora(models.build("Llama"))
    loraga.initialize(model, data, offset=offset, progress=False)
    models.train(model, data)
    model.save_pretrained(tmp_path / "unmerged")
    loraga.export(model, tmp_path / "compressed", rank=2)
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    loraga.export(model, tmp_path / "exported")
    loraga.export(model, tmp_path / "compressed again", rank=2)
    expected = content(tmp_path / "unmerged")
    assert len(expected) == (5 if offset != "none" else 4)
    assert content(tmp_path / "merged") == content(tmp_path / "exported") == expected
    assert content(tmp_path / "compressed") == content(tmp_path / "compressed again")
    assert all(layer.merged for layer in lora_layers(model, "default").values())


def test_a_merged_base_weight_is_not_saved_as_the_original(tmp_path):
    """PEFT saves the base weight too of a head or an embedding that the adapter is on."""
    model, _ = started(target_modules=["q_proj", "lm_head"])
    with pytest.warns(UserWarning, match="embedding layers found in `target_modules`"):
        model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "unmerged", save_embedding_layers=False)
    before = content(tmp_path / "whole")
    model.merge_adapter()
    with (
        pytest.warns(UserWarning, match="embedding layers found in `target_modules`"),
        pytest.raises(SaveError, match=r"layer lm_head: .*call unmerge_adapter\(\) first, or pass save_embedding_lay"),
    ):
        model.save_pretrained(tmp_path / "whole")
    assert content(tmp_path / "whole") == before
    model.save_pretrained(tmp_path / "merged", save_embedding_layers=False)
    assert content(tmp_path / "merged") == content(tmp_path / "unmerged")


def test_a_merged_model_on_a_folded_base_gives_the_original_and_stays_merged():
    model, data = folded(keep_original=True)
    models.train(model, data)
    unmerged = models.logits(model, data[0])
    model.merge_adapter()
    merged = models.logits(model, data[0])
    with model.disable_adapter():
        assert torch.equal(models.logits(model, data[0]), models.logits(models.build("Llama"), data[0]))
    assert torch.equal(models.logits(model, data[0]), merged)
    model.unmerge_adapter()
    assert models.relative_difference(models.logits(model, data[0]), unmerged) < 1e-5


def test_loading_over_a_merged_adapter_and_merging_twice_are_refused(tmp_path):
    model, data = started()
    model.save_pretrained(tmp_path)
    models.train(model, data)
    model.merge_adapter()
    merged = models.logits(model, data[0])
    with pytest.raises(AdapterError, match=r"layer model\S+: an adapter is merged into the base weight"):
        model.load_adapter(tmp_path, "default")
    with pytest.raises(AdapterError, match=r"layer model\S+: an adapter is merged into the base weight"):
        loraga.export(model, tmp_path / "whole", merge=True)
    assert torch.equal(models.logits(model, data[0]), merged)


@pytest.mark.filterwarnings("ignore:.*singular directions:UserWarning")
def test_an_adapter_on_the_head_of_a_model_without_embeddings_is_saved(tmp_path):
    """PEFT alone fails: it asks for the embeddings of every model whose lm_head is adapted."""
    data = models.batches("Wav2Vec2")
    model = models.with_lora(models.build("Wav2Vec2"), "Wav2Vec2")
    loraga.initialize(model, data, progress=False)
    models.train(model.eval(), data)
    model.save_pretrained(tmp_path)
    again = loraga.load(models.build("Wav2Vec2"), tmp_path).eval()
    assert torch.equal(models.logits(again, data[0]), models.logits(model, data[0]))


# the letters of each are in other adapters' keys, which PEFT then calls missing
@pytest.mark.parametrize("name", ["b", "weight", "self_attn", "model", "defaul"])
def test_an_adapter_is_loaded_beside_another_by_any_name(name, tmp_path):
    model, data = started()
    models.train(model.eval(), data)
    model.save_pretrained(tmp_path)
    expected = models.logits(model, data[0])
    again = loraga.load(models.build("Llama"), tmp_path).eval()
    again.load_adapter(tmp_path, name)
    again.set_adapter(name)
    assert torch.equal(models.logits(again, data[0]), expected)


@pytest.mark.filterwarnings("ignore:kept as plain LoRA:UserWarning")
def test_a_factor_that_a_directory_lacks_is_missed(tmp_path):
    """PEFT goes on with a new one."""
    model, data = models.with_lora(models.build("Llama")), models.batches("Llama")
    gradients = loraga.estimate_gradients(model, data, rank=2, progress=False)
    layer, _ = gradients.popitem()
    loraga.initialize(model, data, gradients=gradients, on_missing="lora", progress=False)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    del state[f"base_model.model.{layer}.lora_A.weight"]
    save_file(state, tmp_path / "adapter_model.safetensors")
    recipe = json.loads((tmp_path / "loraga.json").read_text())
    (tmp_path / "loraga.json").write_text(json.dumps({**recipe, "sha256": tensor_checksum(state)}))
    with pytest.raises(SaveError, match=rf"describes found no base_model.model.{layer}.lora_A.default.weight"):
        loraga.load(models.build("Llama"), tmp_path)


def test_an_adapter_is_loaded_from_a_subfolder_with_its_start(tmp_path):
    model, data = started()
    models.train(model.eval(), data)
    expected = models.logits(model, data[0])
    model.save_pretrained(tmp_path / "second")
    models.with_lora(models.build("Llama"), r=3).save_pretrained(tmp_path)  # what must not be taken for it
    again = loraga.load(models.build("Llama"), tmp_path).eval()
    carry(again)
    again.load_adapter(tmp_path, "second", subfolder="second")
    again.set_adapter("second")
    assert torch.equal(models.logits(again, data[0]), expected)
    assert {layer.r["second"] for layer in lora_layers(again, "second").values()} == {2}
    assert again._loraga_reports["second"] == model._loraga_reports["default"]
    with pytest.raises(SaveError, match=r"third holds no adapter_config\.json"):
        again.load_adapter(tmp_path, "third", subfolder="third")
