import json
import math

import pytest
import torch
from peft import PeftModel

from loraga.errors import SaveError
from loraga.layers import lora_layers
from loraga.saved_adapter import read_saved_adapter
from tests.foreign import CONFIG, WEIGHTS, AuthorsRun, edit
from tests.models import batches, build, with_lora

PATTERNS = {
    "rank_pattern": {"q_proj": 1, r".*layers\.1\.mlp\.down_proj": 3},
    "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 7, "down_proj": 9},
}


@pytest.mark.parametrize("rslora", [False, True])
def test_scalings_are_those_of_the_peft_that_reads_the_same_config(tmp_path, rslora):
    with_lora(build("Llama"), use_rslora=rslora, **PATTERNS).save_pretrained(tmp_path)
    expected = lora_layers(PeftModel.from_pretrained(build("Llama"), tmp_path), "default")
    found = read_saved_adapter(tmp_path).layers
    assert {name: layer.eta for name, layer in found.items()} == {
        name: layer.scaling["default"] for name, layer in expected.items()
    }
    assert {name: layer.rank for name, layer in found.items()} == {
        name: layer.r["default"] for name, layer in expected.items()
    }
    assert len({layer.eta for layer in found.values()}) >= 4
    for name, layer in found.items():
        assert torch.equal(layer.A, expected[name].lora_A["default"].weight)
        assert torch.equal(layer.B, expected[name].lora_B["default"].weight)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scalings_of_the_authors_adapters_are_the_trained_ones_before_and_after_their_conversion(tmp_path, rslora):
    patterns = {"rank_pattern": {"v_proj": 1}, "alpha_pattern": {r"layers\.0\.self_attn\.v_proj": 6, "down_proj": 9}}
    run = AuthorsRun(batches("Llama"), use_rslora=rslora, **patterns)
    expected = {name: layer.eta for name, layer in run.layers.items()}
    for directory in (run.save(tmp_path / "trained"), run.save_final(tmp_path / "final")):
        found = read_saved_adapter(directory).layers
        assert {name: layer.eta for name, layer in found.items()} == expected
    root = math.sqrt(2) if rslora else 2
    assert expected["model.layers.0.self_attn.v_proj"] == 4  # of rank 1, with the default lora_alpha
    assert expected["model.layers.1.self_attn.q_proj"] == 4 / root


def test_embeddings_are_told_from_linear_layers(tmp_path):
    with_lora(build("Llama"), target_modules=["q_proj", "embed_tokens"]).save_pretrained(
        tmp_path, save_embedding_layers=False
    )
    layers = read_saved_adapter(tmp_path).layers
    assert {name for name, layer in layers.items() if not layer.is_linear} == {"model.embed_tokens"}


@pytest.mark.parametrize("alpha", [None, "four", 0, math.inf])
def test_a_config_without_a_scaling_is_refused(tmp_path, alpha):
    with_lora(build("Llama")).save_pretrained(tmp_path)
    edit(tmp_path, lora_alpha=alpha)
    with pytest.raises(SaveError, match=r"adapter_config\.json is damaged: lora_alpha of layer model\.layers\.\d"):
        read_saved_adapter(tmp_path)


def test_damage_is_told_before_anything_is_read(tmp_path):
    with_lora(build("Llama")).save_pretrained(tmp_path)
    weights = tmp_path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SaveError, match=r"adapter_model\.safetensors is cut short"):
        read_saved_adapter(tmp_path)


def test_what_is_no_lora_is_refused(tmp_path):
    with_lora(build("Llama")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(SaveError, match="adapter of type IA3, not a LoRA"):
        read_saved_adapter(tmp_path)
