"""An adapter trained by plain PEFT on a residual base, taken back to the original base or left where it is."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import loraga
from loraga import AdapterError, OffsetError, SaveError
from loraga.layers import lora_layers
from loraga.offset import has_offset, is_folded, trained_factors
from loraga.residual import probes, probes_of_start
from loraga.scheme import Factors
from tests import models, quantised
from tests.integration.common import adapter_state, assert_moved, assert_same
from tests.quantised import repack

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LORA = {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"down_proj": 9, "k_proj": 0.02}}
BATCHES = models.batches("Llama")


def original(seed=0):
    return models.build("Llama", seed)


def lora_ga(offset):
    model = models.with_lora(original(), **LORA)
    loraga.initialize(model, BATCHES, offset=offset, progress=False)
    return model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with original/, residual/ and trained/, what plain PEFT made of the start, and its logits."""
    return made_place(tmp_path_factory.mktemp("place"), original())


def made_place(folder, base):
    base.save_pretrained(folder / "original")
    model = models.with_lora(LlamaForCausalLM.from_pretrained(folder / "original"), **LORA)
    loraga.initialize(model, BATCHES, offset="weights", progress=False)
    loraga.save_residual(model, folder / "residual")
    theirs = PeftModel.from_pretrained(residual(folder), folder / "residual" / "adapter", is_trainable=True).eval()
    models.train(theirs, BATCHES)
    theirs.save_pretrained(folder / "trained")
    return folder, models.logits(theirs, BATCHES[0])


def residual(folder):
    return LlamaForCausalLM.from_pretrained(folder / "residual").eval()


def named(folder):
    return LlamaForCausalLM.from_pretrained(folder / "original").eval()


BASES = {"residual": residual, "original": lambda folder: original(), "named": named}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 4),
    st.floats(0.1, 10),
    st.floats(0.05, 5),
    st.integers(0, 10_000),
)
def test_a_start_in_a_weight_moves_its_probes_by_what_is_known_without_it(d_out, d_in, rank, eta, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    A = scale * torch.randn(rank, d_in, generator=generator)
    B = scale * torch.randn(d_out, rank, generator=generator)
    start, product = Factors(A=A, B=B), eta * B.double() @ A.double()

    before, after = probes(W.float(), start), probes((W - product).float(), start)

    one_by_one = [float(B[:, i].double() @ W @ A[i].double()) for i in range(rank)]
    size = float((W.norm() + product.norm()) * A.norm() * B.norm())
    torch.testing.assert_close(before, torch.tensor(one_by_one, dtype=torch.float64), rtol=0, atol=1e-6 * size)
    torch.testing.assert_close(before - after, probes_of_start(start, eta), rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("is_trainable", [False, True])
def test_a_trained_adapter_is_loaded_onto_the_residual_base_and_onto_the_original(place, base, is_trainable):
    folder, trained = place

    model = loraga.load(BASES[base](folder), folder / "trained", is_trainable=is_trainable).eval()

    assert models.relative_difference(models.logits(model, BATCHES[0]), trained) <= 1e-5
    assert models.relative_difference(trained, models.logits(original(), BATCHES[0])) > 1e-2
    for layer in lora_layers(model, "default").values():
        assert has_offset(layer, "default")
        assert is_folded(layer, "default") is (base == "residual")
        assert trained_factors(layer, "default").A.shape[0] in (1, 2)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        name for name, _ in model.named_parameters() if ".lora_" in name and is_trainable
    }
    if base != "residual":
        with model.disable_adapter():
            assert torch.equal(models.logits(model, BATCHES[0]), models.logits(original(), BATCHES[0]))


@pytest.mark.parametrize("base", BASES)
def test_it_is_exported_as_a_plain_lora_for_the_original_base(place, tmp_path, base):
    folder, trained = place

    loraga.export(loraga.load(BASES[base](folder), folder / "trained"), tmp_path)

    in_peft = PeftModel.from_pretrained(original(), tmp_path).eval()
    assert models.relative_difference(models.logits(in_peft, BATCHES[0]), trained) <= 1e-5
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(folder / "original")
    now, start = load_file(folder / "trained" / WEIGHTS), load_file(folder / "residual" / "adapter" / WEIGHTS)
    for key, tensor in load_file(tmp_path / WEIGHTS).items():
        half = torch.cat([now[key], start[key]]) if "lora_A" in key else torch.cat([now[key], -start[key]], dim=1)
        assert torch.equal(tensor, half)


@pytest.mark.parametrize("base", ["residual", "original"])
def test_it_is_compressed_and_merged_for_the_original_base(place, tmp_path, base):
    folder, trained = place
    model = loraga.load(BASES[base](folder), folder / "trained")

    loraga.export(model, tmp_path / "small", rank=4)
    loraga.export(model, tmp_path / "merged", merge=True)

    in_peft = PeftModel.from_pretrained(original(), tmp_path / "small").eval()
    assert models.relative_difference(models.logits(in_peft, BATCHES[0]), trained) <= 1e-5
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert models.relative_difference(models.logits(merged, BATCHES[0]), trained) <= 1e-5


def test_training_on_the_residual_base_is_lora_ga_at_every_step(place):
    _, trained = place
    model = lora_ga("adapter")
    models.train(model, BATCHES)

    assert models.relative_difference(trained, models.logits(model, BATCHES[0])) <= 1e-4


def test_training_goes_on_with_the_trained_rank_on_the_original_base(place, tmp_path):
    folder, _ = place
    model = loraga.load(named(folder), folder / "trained", is_trainable=True).eval()
    before = adapter_state(model)

    models.train(model, BATCHES)
    model.save_pretrained(tmp_path)

    assert_moved(adapter_state(model), before)
    start = {key: value for key, value in before.items() if "lora_offset" in key}
    assert_same({key: adapter_state(model)[key] for key in start}, start)
    again = loraga.load(named(folder), tmp_path).eval()
    assert torch.equal(models.logits(again, BATCHES[0]), models.logits(model, BATCHES[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_base_is_recognised_in_half_precision_too(place, dtype):
    folder, _ = place

    for base, folded in ((residual(folder), True), (original(), False)):
        model = loraga.load(base.to(dtype), folder / "trained")
        assert {is_folded(layer, "default") for layer in lora_layers(model, "default").values()} == {folded}


def test_the_base_is_recognised_in_four_bits_too(tmp_path):
    from transformers import BitsAndBytesConfig

    # rows of whole blocks of 64: bitsandbytes reads narrower ones with wrong scales on a CPU with AVX512
    folder, _ = made_place(tmp_path, quantised.float_model())

    def in_four_bits():
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        return LlamaForCausalLM.from_pretrained(folder / "original", quantization_config=config)

    before = models.logits(in_four_bits(), BATCHES[0])

    model = loraga.load(in_four_bits(), folder / "trained").eval()

    assert not any(is_folded(layer, "default") for layer in lora_layers(model, "default").values())
    with model.disable_adapter():
        assert torch.equal(models.logits(model, BATCHES[0]), before)
    assert models.relative_difference(models.logits(model, BATCHES[0]), before) > 1e-2

    evaluated = in_four_bits()
    repack(evaluated)
    with pytest.raises(OffsetError, match=r"q_proj: its weight cannot be read here.*evaluate it after the adapter"):
        loraga.load(evaluated, folder / "trained")


def test_a_moved_residual_base_is_found_by_the_model_that_is_given(place, tmp_path):
    folder, trained = place
    shutil.copytree(folder / "residual", tmp_path / "moved")
    shutil.copytree(folder / "trained", tmp_path / "trained")
    edit(tmp_path / "trained" / CONFIG, base_model_name_or_path="/was/here")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "moved").eval()

    model = loraga.load(base, tmp_path / "trained").eval()

    assert {is_folded(layer, "default") for layer in lora_layers(model, "default").values()} == {True}
    assert models.relative_difference(models.logits(model, BATCHES[0]), trained) <= 1e-5


# ---- what is refused, with the base as it was


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copied(place, tmp_path):
    """The residual base and the trained adapter, to be damaged."""
    folder, _ = place
    for name in ("residual", "trained"):
        shutil.copytree(folder / name, tmp_path / name)
    edit(tmp_path / "trained" / CONFIG, base_model_name_or_path=str(tmp_path / "residual"))
    return tmp_path


def refused(base, directory, error, match):
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with pytest.raises(error, match=match):
        loraga.load(base, directory)
    assert_same(dict(base.state_dict()), before)


NEITHER = "the base is neither the residual base .* nor, in all layers, its original"


def test_a_base_that_is_neither_of_the_two_is_refused(copied):
    refused(original(seed=3), copied / "trained", OffsetError, NEITHER)


@pytest.mark.parametrize("base", ["original", "residual"])
def test_a_model_that_was_trained_further_than_rounding_reaches_is_refused(copied, base):
    further = BASES[base](copied)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in further.parameters():
            weight += 0.15 * weight.std() * torch.randn(weight.shape, generator=generator)

    refused(further, copied / "trained", OffsetError, NEITHER)


@pytest.mark.parametrize("name", ["v_proj", "k_proj"])  # of the second hardly anything is subtracted
def test_a_base_with_one_layer_of_the_other_is_refused(copied, name):
    base, other = original(), residual(copied)
    adapted = getattr(base.model.layers[1].self_attn, name)
    adapted.load_state_dict(getattr(other.model.layers[1].self_attn, name).state_dict())

    refused(base, copied / "trained", OffsetError, NEITHER)


def test_a_start_that_was_trained_over_is_refused(copied):
    shutil.copy(copied / "trained" / WEIGHTS, copied / "residual" / "adapter" / WEIGHTS)

    refused(
        original(), copied / "trained", SaveError, "is not the start that was written with .*Write the residual base"
    )


def test_a_start_that_is_gone_is_refused(copied):
    shutil.rmtree(copied / "residual" / "adapter")

    refused(original(), copied / "trained", SaveError, "the start of the residual base, cannot be read")


def test_an_adapter_of_another_rank_is_refused(copied):
    state = load_file(copied / "trained" / WEIGHTS)
    for key in [key for key in state if "v_proj" in key]:
        state[key] = torch.cat([state[key]] * 2, dim=0 if "lora_A" in key else 1)
    save_file(state, copied / "trained" / WEIGHTS, metadata={"format": "pt"})
    patterns = json.loads((copied / "trained" / CONFIG).read_text())["rank_pattern"]
    edit(copied / "trained" / CONFIG, rank_pattern={**patterns, "v_proj": 4})

    refused(original(), copied / "trained", SaveError, r"layer \S+v_proj of rank 2, .* is not in the adapter")


def test_a_damaged_record_is_refused(copied):
    (copied / "residual" / "loraga_residual.json").write_text("{")

    refused(original(), copied / "trained", SaveError, "is damaged")


@pytest.mark.parametrize("kind", ["offset", "mirrored"])
def test_an_adapter_for_the_original_base_is_refused_on_the_residual_one(place, tmp_path, kind):
    folder, _ = place
    model = models.with_lora(named(folder))
    loraga.initialize(model, BATCHES, progress=False)
    model.save_pretrained(tmp_path) if kind == "offset" else loraga.save_mirrored(model, tmp_path)

    refused(residual(folder), tmp_path, OffsetError, "is for the original base, and .* is a residual base")


def test_what_plain_peft_loaded_onto_a_residual_base_is_not_exported_as_if_for_the_original(place, tmp_path):
    folder, _ = place
    model = PeftModel.from_pretrained(residual(folder), folder / "trained")

    with pytest.raises(AdapterError, match=r"is a residual base, .*load it with loraga\.load\(base, directory\)"):
        loraga.export(model, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_an_adapter_for_a_residual_base_is_not_loaded_into_a_model_on_another(place):
    folder, _ = place
    model = lora_ga("adapter")
    before = adapter_state(model)

    with pytest.raises(SaveError, match=r"is for the residual base .*; load it with loraga\.load onto a fresh base"):
        model.load_adapter(folder / "trained", "default")

    assert_same(adapter_state(model), before)
