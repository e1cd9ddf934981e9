"""The two starts for tools that know only plain PEFT: their algebra, and what is written."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import loraga
from loraga import AdapterError, OffsetError, SaveError
from loraga.gradient import factor_matrix
from loraga.layers import lora_layers
from loraga.offset import offset_of, trained_factors
from loraga.residual_record import read_record
from tests import models
from tests.integration.common import assert_same
from tests.lab.conftest import byte_tokenizer
from tests.planted import first_step_operator, planted

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
UNIT = 2.0**-24  # of float32


# ---- the algebra, in float64


def gradients_of(G, A, B, eta):
    """dL/dA and dL/dB at y = (W + eta B A) x, by autograd, for a loss whose gradient by the weight is G everywhere."""
    A, B = A.clone().requires_grad_(True), B.clone().requires_grad_(True)
    return torch.autograd.grad((G * (eta * B @ A)).sum(), (A, B))


def moved(G, A, B, eta, rate):
    """eta B A after one step of gradient descent."""
    dA, dB = gradients_of(G, A, B, eta)
    return eta * (B - rate * dB) @ (A - rate * dA)


sizes, etas, rates = st.integers(1, 24), st.floats(0.05, 16.0), st.floats(1e-4, 1.0)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 6), etas, rates, st.integers(0, 10_000))
def test_a_mirrored_step_at_half_the_rate_is_lora_gas_step_without_its_second_order(d_out, d_in, rank, eta, rate, seed):
    """The halves cancel at the start, and so do the parts of their steps that are quadratic in the rate.

    With dA = eta B0^T G and dB = eta G A0^T at LoRA-GA's start, rate l and h = l / 2:

        LoRA-GA    eta ((B0 - l dB)(A0 - l dA) - B0 A0)
                   = -l eta^2 (G A0^T A0 + B0 B0^T G) + l^2 eta^3 G A0^T B0^T G
        mirrored   the halves are B0, A0 and -B0, A0; their gradients dB, dA and dB, -dA
                   eta ((B0 - h dB)(A0 - h dA) + (-B0 - h dB)(A0 + h dA))
                   = eta (B0 A0 - h (dB A0 + B0 dA) + h^2 dB dA - B0 A0 - h (B0 dA + dB A0) - h^2 dB dA)
                   = -2 h eta^2 (G A0^T A0 + B0 B0^T G)
    """
    generator = torch.Generator().manual_seed(seed)
    G = planted(d_out, d_in, seed=seed).matrix
    A0 = torch.randn(rank, d_in, generator=generator, dtype=torch.float64)
    B0 = torch.randn(d_out, rank, generator=generator, dtype=torch.float64)

    lora_ga = moved(G, A0, B0, eta, rate) - eta * B0 @ A0
    mirrored = moved(G, torch.cat([A0, A0]), torch.cat([B0, -B0], dim=1), eta, rate / 2)

    first_order = -rate * eta**2 * first_step_operator(G, A0, B0)
    second_order = rate**2 * eta**3 * G @ A0.T @ B0.T @ G
    scale = float(first_order.norm() + second_order.norm() + (eta * B0 @ A0).norm())
    torch.testing.assert_close(mirrored, first_order, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(lora_ga, first_order + second_order, rtol=0, atol=1e-12 * scale)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 64), st.integers(1, 8), etas, st.integers(0, 10_000))
def test_what_a_mirrored_adapter_adds_is_within_the_rounding_of_its_sums(d_out, d_in, rank, eta, seed):
    """In float32: a sum of 2r terms that cancel errs by (2r + 1) u at most, and A0 x of the two halves by d_in u."""
    generator = torch.Generator().manual_seed(seed)
    A0, B0 = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
    x = torch.randn(5, d_in, generator=generator)

    added = eta * F.linear(F.linear(x, torch.cat([A0, A0])), torch.cat([B0, -B0], dim=1))

    products = x.double().abs() @ A0.double().abs().T @ B0.double().abs().T
    bound = eta * 2 * (2 * rank + 1 + d_in + 1) * UNIT * 1.01 * products
    assert bool((added.double().abs() <= bound).all())


# ---- what is written, over shapes, ranks and scalings


@st.composite
def adapters(draw):
    """A tiny Llama's sizes, and an adapter of it whose layers have ranks and scalings of their own."""
    width, inner = 8 * draw(st.integers(1, 3)), draw(st.integers(6, 30))
    adapted = ["q_proj", *draw(st.sampled_from([["v_proj"], ["down_proj", "up_proj"], ["o_proj", "gate_proj"]]))]
    rank_of, alpha_of = st.integers(1, 3), st.sampled_from([1, 3, 8, 16.5])
    patterns = draw(st.sets(st.sampled_from([r"layers\.1\.self_attn\.q_proj", *adapted[1:]])))
    lora = {
        "r": draw(rank_of),
        "lora_alpha": draw(alpha_of),
        "use_rslora": True,
        "target_modules": adapted,
        "rank_pattern": {key: draw(rank_of) for key in sorted(patterns)},
        "alpha_pattern": {key: draw(alpha_of) for key in sorted(patterns)},
    }
    return width, inner, lora, draw(st.integers(0, 1000))


def llama(width, inner, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
        return LlamaForCausalLM(config).eval()


def started(case, offset):
    """The model with a start from planted gradients, its base's function, and a batch."""
    width, inner, lora, seed = case
    base = llama(width, inner, seed)
    tokens = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(seed))
    batch = {"input_ids": tokens, "labels": tokens}
    before = models.logits(base, batch)
    model = get_peft_model(base, LoraConfig(**lora))
    gradients = {
        name: factor_matrix(planted(*layer.get_base_layer().weight.shape, seed=seed + i).matrix.float(), 12)
        for i, (name, layer) in enumerate(lora_layers(model, "default").items())
    }
    loraga.initialize(model, gradients=gradients, gamma=4.0, offset=offset, check=False, progress=False)
    return model.eval(), batch, before


@settings(max_examples=12, deadline=None)
@given(adapters())
def test_a_mirrored_start_is_a_plain_lora_of_twice_the_rank_that_adds_nothing(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("start")
    model, batch, before = started(case, "adapter")

    written = loraga.save_mirrored(model, folder)

    loaded = PeftModel.from_pretrained(llama(*case[:2], case[3]), folder, is_trainable=True).eval()
    assert models.relative_difference(models.logits(loaded, batch), before) <= 2e-6
    for name, layer in lora_layers(loaded, "default").items():
        source = lora_layers(model, "default")[name]
        start, now = offset_of(source, "default"), trained_factors(layer, "default")
        assert layer.r["default"] == written.ranks[name] == 2 * source.r["default"]
        assert layer.scaling["default"] == pytest.approx(source.scaling["default"], rel=1e-12)
        assert torch.equal(now.A, torch.cat([start.A, start.A]))
        assert torch.equal(now.B, torch.cat([start.B, -start.B], dim=1))
        assert bool(start.B.any())
    assert_plain_config(folder)
    assert not (folder / "loraga.json").exists()  # by which loraga.load would take the halves apart


@settings(max_examples=12, deadline=None)
@given(adapters())
def test_an_adapter_of_the_same_rank_on_the_residual_base_is_the_original_function(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("start")
    model, batch, before = started(case, "weights")

    written = loraga.save_residual(model, folder)

    residual, original = LlamaForCausalLM.from_pretrained(folder).eval(), llama(*case[:2], case[3])
    assert models.relative_difference(models.logits(residual, batch), before) > 1e-3
    weights, originals = residual.state_dict(), original.state_dict()
    loaded = PeftModel.from_pretrained(residual, folder / "adapter", is_trainable=True).eval()
    assert models.relative_difference(models.logits(loaded, batch), before) <= 1e-5
    layers = lora_layers(loaded, "default")
    for name, layer in layers.items():
        source, now = lora_layers(model, "default")[name], trained_factors(layer, "default")
        start = offset_of(source, "default")
        assert layer.r["default"] == written.ranks[name] == source.r["default"]
        assert layer.scaling["default"] == pytest.approx(source.scaling["default"], rel=1e-12)
        assert torch.equal(now.A, start.A)
        assert torch.equal(now.B, start.B)
        change = source.scaling["default"] * start.B.double() @ start.A.double()
        expected = originals[f"{name}.weight"].double() - change
        torch.testing.assert_close(weights.pop(f"{name}.weight").double(), expected, rtol=0, atol=1e-6)
    untouched = {name: originals[name] for name in weights if ".lora_" not in name and ".base_layer." not in name}
    assert_same({name: weights[name] for name in untouched}, untouched)
    assert written.relative_error < 1e-5
    assert_plain_config(folder / "adapter")


def assert_plain_config(folder):
    config = json.loads((folder / CONFIG).read_text())
    assert (config["peft_type"], config["init_lora_weights"], config["use_rslora"]) == ("LORA", True, False)
    assert not any("offset" in key for key in load_file(folder / WEIGHTS))


# ---- on a small language model


def fresh(name="Llama", **lora):
    return models.with_lora(models.build(name), name, **lora)


def on_llama(offset="adapter", **lora):
    model = fresh(**lora)
    loraga.initialize(model, models.batches("Llama"), offset=offset, progress=False)
    return model.eval()


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "T5"])
def test_half_precision_hides_what_a_mirrored_start_adds_bit_for_bit(tmp_path, name):
    model, data = models.with_lora(models.build(name).to(torch.bfloat16), name), models.batches(name)
    loraga.initialize(model, data, progress=False)
    loraga.save_mirrored(model, tmp_path)

    base = models.build(name).to(torch.bfloat16)
    before = models.logits(base, data[0], name)
    loaded = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()

    assert torch.equal(models.logits(loaded, data[0], name), before)


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "T5"])
def test_both_starts_load_onto_other_architectures(tmp_path, name):
    data = models.batches(name)
    before = models.logits(models.build(name), data[0], name)
    mirrored, residual = fresh(name), fresh(name)
    loraga.initialize(mirrored, data, progress=False)
    loraga.initialize(residual, data, offset="weights", progress=False)

    loraga.save_mirrored(mirrored, tmp_path / "mirrored")
    loraga.save_residual(residual, tmp_path / "residual")

    loaded = PeftModel.from_pretrained(models.build(name), tmp_path / "mirrored", is_trainable=True).eval()
    assert models.relative_difference(models.logits(loaded, data[0], name), before) <= 2e-6
    base = type(models.build(name)).from_pretrained(tmp_path / "residual").eval()
    assert models.relative_difference(models.logits(base, data[0], name), before) > 1e-3
    loaded = PeftModel.from_pretrained(base, tmp_path / "residual" / "adapter", is_trainable=True).eval()
    assert models.relative_difference(models.logits(loaded, data[0], name), before) <= 1e-5


def test_dropout_leaves_a_mirrored_start_a_no_op_in_train_mode_too(tmp_path):
    batch = models.batches("Llama", 1)[0]
    loraga.save_mirrored(on_llama(lora_dropout=0.3), tmp_path)
    loaded = PeftModel.from_pretrained(models.build("Llama"), tmp_path, is_trainable=True).train()

    assert loaded.peft_config["default"].lora_dropout == 0.3
    expected = models.logits(models.build("Llama"), batch)
    assert models.relative_difference(models.logits(loaded, batch), expected) <= 2e-6


def weight_changes(model, step):
    """{layer: by how much the step changes eta B A}, in float64."""
    layers = lora_layers(model, "default")

    def products():
        now = {name: trained_factors(layer, "default") for name, layer in layers.items()}
        return {name: layers[name].scaling["default"] * each.B.double() @ each.A.double() for name, each in now.items()}

    before = products()
    step()
    return {name: product - before[name] for name, product in products().items()}


def one_step(model, batch, optimizer, rate):
    chosen = optimizer([p for p in model.parameters() if p.requires_grad], lr=rate)
    model(**batch).loss.backward()
    chosen.step()
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])  # weight decay would tell them apart
def test_the_first_step_of_a_mirrored_model_is_lora_gas_at_twice_the_rate(tmp_path, optimizer):
    """In float64, where what differs is of second order in the rate: half the rate, half the relative difference."""
    batch = models.batches("Llama", 1)[0]
    loraga.save_mirrored(on_llama(), tmp_path)

    def steps(rate):
        ours = loraga.load(models.build("Llama"), directory, is_trainable=True).double().eval()
        base = models.build("Llama").double()
        theirs = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).double().eval()
        return (
            weight_changes(ours, lambda: one_step(ours, batch, optimizer, rate)),
            weight_changes(theirs, lambda: one_step(theirs, batch, optimizer, rate / 2)),
        )

    directory = tmp_path / "lora_ga"
    on_llama().save_pretrained(directory)
    differences = []
    for rate in (1e-4, 5e-5):
        lora_ga, mirrored = steps(rate)
        assert lora_ga.keys() == mirrored.keys()
        squared = sum(float((mirrored[name] - change).norm() ** 2) for name, change in lora_ga.items())
        differences.append(math.sqrt(squared / sum(float(change.norm() ** 2) for change in lora_ga.values())))
    assert differences[0] < 1e-2
    assert differences[0] / differences[1] == pytest.approx(2, rel=0.05)


def test_a_large_model_is_written_in_shards_that_transformers_reads(tmp_path):
    model, batch = on_llama("weights"), models.batches("Llama", 1)[0]
    before = models.logits(models.build("Llama"), batch)

    loraga.save_residual(model, tmp_path / "sharded", max_shard_size="20KB")

    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
    base = LlamaForCausalLM.from_pretrained(tmp_path / "sharded").eval()
    loaded = PeftModel.from_pretrained(base, tmp_path / "sharded" / "adapter").eval()
    assert models.relative_difference(models.logits(loaded, batch), before) <= 1e-5


def test_a_residual_base_in_shards_replaces_one_in_a_single_file(tmp_path):
    """Transformers takes model.safetensors before an index: a file that is left over would be the model."""
    first = on_llama("weights")
    loraga.save_residual(first, tmp_path / "base")
    second = models.with_lora(models.build("Llama", seed=5))
    loraga.initialize(second, models.batches("Llama"), offset="weights", progress=False)

    loraga.save_residual(second, tmp_path / "base", max_shard_size="20KB")

    batch = models.batches("Llama", 1)[0]
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
    loaded = PeftModel.from_pretrained(base, tmp_path / "base" / "adapter").eval()
    expected = models.logits(models.build("Llama", seed=5), batch)
    assert models.relative_difference(models.logits(loaded, batch), expected) <= 1e-5


def test_a_tokenizer_is_written_beside_the_model(tmp_path):
    loraga.save_residual(on_llama("weights"), tmp_path, tokenizer=byte_tokenizer())

    assert {"config.json", "model.safetensors", "tokenizer.json", "loraga_residual.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_fully_trained_modules_and_tied_embeddings_come_along(tmp_path):
    settings = {"tie_word_embeddings": True, "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24}
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3, **settings)
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).eval()
    tokens = torch.arange(20).reshape(2, 10)
    before = models.logits(base, {"input_ids": tokens})
    lora = LoraConfig(r=2, use_rslora=True, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"])
    model = get_peft_model(base, lora)
    loraga.initialize(model, [{"input_ids": tokens, "labels": tokens}], offset="weights", progress=False)

    loraga.save_residual(model, tmp_path)

    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert "lora" not in " ".join(load_file(tmp_path / "model.safetensors"))
    adapter = PeftModel.from_pretrained(loaded, tmp_path / "adapter", is_trainable=True).eval()
    assert models.relative_difference(models.logits(adapter, {"input_ids": tokens}), before) <= 1e-5
    assert any("modules_to_save" in name for name, weight in adapter.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize(("offset", "save"), [("adapter", "save_mirrored"), ("weights", "save_residual")])
def test_saving_a_start_leaves_the_model_as_it_is(tmp_path, offset, save):
    model = on_llama(offset)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = {**model.peft_config["default"].__dict__}
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]

    getattr(loraga, save)(model, tmp_path)

    assert_same(dict(model.state_dict()), state)
    assert model.peft_config["default"].__dict__ == config
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trainable


@pytest.mark.parametrize(("offset", "save"), [("adapter", "save_mirrored"), ("weights", "save_residual")])
def test_a_start_says_what_it_is_in_its_report(tmp_path, offset, save):
    getattr(loraga, save)(on_llama(offset), tmp_path)

    folder = tmp_path / "adapter" if save == "save_residual" else tmp_path
    report = json.loads((folder / "loraga_report.json").read_text())
    assert report["offset"] == save.removeprefix("save_")
    assert report["scheme"] == "lora_ga"
    assert report["coverage"] > 0


def test_a_residual_base_names_its_original_and_what_rounding_lost(tmp_path):
    models.build("Llama").to(torch.bfloat16).save_pretrained(tmp_path / "original")
    model = models.with_lora(LlamaForCausalLM.from_pretrained(tmp_path / "original", dtype=torch.bfloat16))
    report = loraga.initialize(
        model, models.batches("Llama"), offset="weights", allow_rounding=True, max_change=1.0, progress=False
    )

    written = loraga.save_residual(model, tmp_path / "residual")

    record = read_record(tmp_path / "residual")
    assert record.original == str(tmp_path / "original")
    config = json.loads((tmp_path / "residual" / "adapter" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "residual")
    assert {name: layer.rounding for name, layer in record.layers.items()} == {
        name: layer.rounding for name, layer in report.layers.items()
    }
    worst = max(report.layers, key=lambda name: report.layers[name].rounding)
    assert 1e-4 < written.relative_error <= report.layers[worst].rounding < 0.2
    assert f"rounding lost {written.relative_error:.2g} of the start" in str(written)
    assert f"at worst {report.layers[worst].rounding:.2g} in {worst}" in str(written)


def test_what_was_written_is_said_in_one_line(tmp_path):
    mirrored = loraga.save_mirrored(on_llama(), tmp_path / "mirrored")
    residual = loraga.save_residual(on_llama("weights"), tmp_path / "residual")

    assert str(mirrored) == (
        f"mirrored start, a plain LoRA of rank 4 for the original base, written to {tmp_path / 'mirrored'}"
    )
    assert str(residual).startswith(
        f"residual base, and in its folder adapter an adapter of rank 2 for it, written to {tmp_path / 'residual'}; "
    )
    assert (mirrored.kind, residual.kind) == ("mirrored", "residual")


# ---- what is refused


@pytest.mark.parametrize(("offset", "save"), [("adapter", "save_mirrored"), ("weights", "save_residual")])
def test_a_trained_adapter_is_no_start(tmp_path, offset, save):
    model = on_llama(offset)
    models.train(model, models.batches("Llama"), steps=1)

    with pytest.raises(AdapterError, match=r"layer \S+: adapter 'default' is trained already, so it is no start"):
        getattr(loraga, save)(model, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("save", ["save_mirrored", "save_residual"])
def test_an_adapter_without_a_start_is_refused(tmp_path, save):
    with pytest.raises(AdapterError, match=r"has no start that is subtracted; initialise it with loraga\.initialize"):
        getattr(loraga, save)(fresh(), tmp_path / "out")


def test_a_start_that_is_not_in_the_weights_gives_no_residual_base(tmp_path):
    with pytest.raises(OffsetError, match=r"not subtracted from the base weight; .*offset='weights'"):
        loraga.save_residual(on_llama(), tmp_path / "out")


def test_a_directory_that_holds_another_model_is_not_overwritten(tmp_path):
    models.build("Llama").save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(SaveError, match="holds another model, which would be lost; name another directory"):
        loraga.save_residual(on_llama("weights"), tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_base_that_cannot_be_saved_is_refused(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(8, 6)), LoraConfig(r=2, use_rslora=True, target_modules=["0"])
    )
    gradients = {"0": factor_matrix(planted(6, 8).matrix.float(), 6)}
    loraga.initialize(model, gradients=gradients, offset="weights", check=False, progress=False)

    with pytest.raises(SaveError, match="Sequential has no save_pretrained"):
        loraga.save_residual(model, tmp_path / "out")
