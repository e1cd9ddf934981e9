import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel

import loraga
from loraga import SaveError
from loraga.adapter_directory import (
    adapter_layout,
    own_config,
    read_recipe,
    read_report,
    split_recipe,
    write_plain_lora,
)
from loraga.layers import lora_layers
from loraga.layout import LayerLayout, weight_key
from loraga.offset import trained_factors
from tests import models


def started(offset="adapter", **settings):
    model = models.with_lora(models.build("Llama"), rank_pattern={"q_proj": 3}, **settings)
    loraga.initialize(model, models.batches("Llama"), offset=offset, progress=False)
    return model


def test_the_layout_has_each_layers_own_rank_scaling_and_offset():
    for offset in ("adapter", "none"):
        layout = adapter_layout(started(offset), "default")
        assert len(layout) == 14
        for name, layer in layout.items():
            rank = 3 if name.endswith("q_proj") else 2
            assert layer == LayerLayout(rank=rank, scaling=pytest.approx(4 / rank**0.5), offset=offset == "adapter")


def test_the_recipe_names_the_ranks_of_layers_with_an_offset_and_the_adapters_own_config():
    recipe = split_recipe(started(), "default")
    assert (recipe.config["r"], recipe.config["lora_alpha"], recipe.config["use_rslora"]) == (2, 4, True)
    assert recipe.config["rank_pattern"] == {"q_proj": 3}
    assert sorted(recipe.ranks.values()) == [2] * 12 + [3] * 2
    assert not recipe.folded
    assert recipe.version == loraga.__version__
    assert split_recipe(started("weights"), "default").folded
    assert split_recipe(started("none"), "default").ranks == {}


def test_what_was_saved_is_read_back(tmp_path):
    model = started(lora_dropout=0.25)
    model.save_pretrained(tmp_path)
    recipe = read_recipe(tmp_path)
    assert replace(recipe, sha256="") == split_recipe(model, "default")
    config = own_config(tmp_path, recipe)
    assert (config.r, config.lora_alpha, config.use_rslora, config.lora_dropout) == (2, 4, True, 0.25)
    assert config.rank_pattern == {"q_proj": 3}
    assert config.target_modules == model.peft_config["default"].target_modules


def test_a_directory_without_a_recipe_is_a_plain_lora(tmp_path):
    assert read_recipe(tmp_path) is None
    assert read_recipe(tmp_path / "nowhere") is None


def test_a_damaged_recipe_and_one_of_another_format_are_refused(tmp_path):
    model = started()
    model.save_pretrained(tmp_path)
    path = tmp_path / "loraga.json"
    text = path.read_text()
    path.write_text(text[:-20])
    with pytest.raises(SaveError, match=r"loraga\.json is damaged"):
        loraga.load(models.build("Llama"), tmp_path)
    path.write_text(json.dumps({**json.loads(text), "format": 9}))
    with pytest.raises(SaveError, match="has format 9; this version of loraga reads format 1"):
        model.load_adapter(tmp_path, "default")


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_damaged_report_is_left_out_with_a_warning_since_nothing_depends_on_it(tmp_path, caplog, text):
    assert read_report(tmp_path) is None
    assert not caplog.records
    path = tmp_path / "loraga_report.json"
    path.write_text(json.dumps({"scheme": "of a later version"}))
    assert read_report(tmp_path) == {"scheme": "of a later version"}
    path.write_text(text, encoding="latin-1")
    assert read_report(tmp_path) is None
    assert f"{path} is damaged and is left out" in caplog.text


def test_the_written_lora_is_loaded_by_peft_with_its_own_ranks_and_scalings(tmp_path):
    LoraConfig(r=9, use_rslora=True, target_modules=["q_proj", "v_proj"], lora_dropout=0.5).save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(3)
    layout, state = {}, {}
    for layer in (0, 1):
        for module, rows, rank, scaling in (("q_proj", 32, 2, 3.0), ("v_proj", 16, 1, 0.5)):
            name = f"model.layers.{layer}.self_attn.{module}"
            layout[name] = LayerLayout(rank=rank, scaling=scaling, offset=False)
            state[weight_key(name, "A")] = torch.randn(rank, 32, generator=generator)
            state[weight_key(name, "B")] = torch.randn(rows, rank, generator=generator)
    write_plain_lora(tmp_path, state, layout)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["lora_dropout"], config["use_rslora"]) == (0.5, False)
    loaded = lora_layers(PeftModel.from_pretrained(models.build("Llama"), tmp_path), "default")
    assert set(loaded) == set(layout)
    for name, layer in loaded.items():
        now = trained_factors(layer, "default")
        assert torch.equal(now.A, state[weight_key(name, "A")])
        assert torch.equal(now.B, state[weight_key(name, "B")])
        assert layer.scaling["default"] == layout[name].scaling


@pytest.mark.filterwarnings(
    "ignore:kept as plain LoRA:UserWarning",
    "ignore:.*singular directions:UserWarning",
    # PEFT uses these patterns, and then looks for them among modules, not among parameters
    "ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning",
)
@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"experts.down_proj": 3}}])
def test_experts_kept_as_plain_lora_are_loaded_by_peft_with_their_own_ranks(tmp_path, patterns):
    """Two wrappers of one module, which PEFT knows by the names of their parameters."""
    settings = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], **patterns}
    data = models.batches("Mixtral")
    model = models.with_lora(models.build("Mixtral"), "Mixtral", **settings)
    loraga.initialize(model, data, on_missing="lora", progress=False)
    model.eval()
    models.train(model, data)
    expected = models.logits(model, data[0])
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(models.build("Mixtral"), tmp_path).eval()
    assert models.relative_difference(models.logits(plain, data[0]), expected) < 1e-5
    assert torch.equal(models.logits(loraga.load(models.build("Mixtral"), tmp_path).eval(), data[0]), expected)
