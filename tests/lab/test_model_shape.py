"""Shapes of models that are not loaded, against models that are, and against published counts."""

import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from loraga.lab.errors import SettingsError
from loraga.lab.model_shape import PUBLISHED, at_hand, shape_of, tokenizer_at_hand
from loraga.lab.smollm2 import NAME
from tests.lab.tasks.test_tasks import resolved

# huggingface.co/meta-llama/Llama-2-7b-hf and Llama-3.2-3B: parameters in the index of their safetensors; T5-base as
# transformers counts it, with the shared table once (the papers say 6.7 B, 3.21 B and 220 M)
PARAMETERS = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "google-t5/t5-base": 222_903_552,
}


def recipe_for(model, **keys):
    return resolved(model=model, task="chain_sum", **keys)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_number_of_parameters(name):
    shape = shape_of(recipe_for(name))
    assert shape.parameters == PARAMETERS[name]
    assert shape.source == f"the published shapes of {name}"


def test_lora_on_every_linear_layer_of_llama_has_the_parameters_that_peft_reports():
    """19,988,480 for rank 8 (4.19 M for q_proj and v_proj alone), as in many published runs."""
    assert shape_of(recipe_for("meta-llama/Llama-2-7b-hf")).adapter(8) == 19_988_480
    shape = shape_of(recipe_for("meta-llama/Llama-2-7b-hf", target_modules=["q_proj", "v_proj"]))
    assert shape.adapter(8) == 4_194_304
    assert shape.cache == 2 * 32 * 4096


@pytest.mark.parametrize("kind", ["causal", "pair"])
def test_a_model_at_hand_is_measured_by_its_configuration(kind, tiny_folder, tiny_t5_folder):
    folder = tiny_folder if kind == "causal" else tiny_t5_folder
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(folder)
    shape = shape_of(recipe_for(str(folder)))

    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.vocabulary == 258
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    both = table.numel() + (0 if head is table else head.numel())
    assert shape.encoder + shape.body == shape.parameters - both
    assert (shape.encoder > 0) == (kind == "pair")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert shape.adapter(4) == sum(each.numel() for each in adapted.parameters() if each.requires_grad)


def test_a_model_that_is_nowhere_has_no_shape():
    recipe = recipe_for("somebody/unknown")
    assert at_hand(recipe) is None
    assert shape_of(recipe) is None


def test_a_model_of_the_hub_is_at_hand_once_it_was_fetched_and_its_tokenizer_apart_from_it(
    tiny_folder, monkeypatch, tmp_path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = recipe_for("somebody/tiny")
    assert at_hand(recipe) is None
    cache = tmp_path / "models--somebody--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123")
    (cache / "snapshots" / "0123").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        assert tokenizer_at_hand(recipe) is None
        shutil.copy(tiny_folder / name, cache / "snapshots" / "0123" / name)
    assert shape_of(recipe) == replace(
        shape_of(recipe_for(str(tiny_folder))), source="the configuration of somebody/tiny"
    )
    assert tokenizer_at_hand(recipe).load_tokenizer()("a")["input_ids"]
    assert tokenizer_at_hand(recipe_for(str(tiny_folder))) == at_hand(recipe_for(str(tiny_folder)))


def test_smollm2_is_at_hand_before_it_is_converted(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAGA_CACHE", str(tmp_path))
    assert shape_of(recipe_for(NAME)).parameters == 134_515_008
    assert not list(tmp_path.iterdir())


def test_layers_that_are_not_there_are_said_without_weights(tiny_folder):
    with pytest.raises(SettingsError, match="no adapter can be put on the model; look at target_modules"):
        shape_of(recipe_for(str(tiny_folder), target_modules=["nothing"]))


def test_no_weight_is_made(tiny_folder, monkeypatch):
    made = []
    real = torch.nn.Linear.__init__

    def linear(self, *arguments, **settings):
        real(self, *arguments, **settings)
        made.append(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", linear)
    shape_of(recipe_for(str(tiny_folder)))
    assert set(made) == {"meta"}
