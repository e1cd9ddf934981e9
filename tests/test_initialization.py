import itertools
import json
import logging
import math

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn

import loraga
from loraga import AdapterError, BatchError, GradientError, OffsetError, ScalingError
from loraga.layers import lora_layers
from loraga.loss import loss_terms
from loraga.offset import attach_offset
from tests import models
from tests.test_passes import assert_same_state, state_of

QUIET = {"progress": False}
GAMMAS = {"adapter": 16, "weights": 16, "none": 65536}


def fresh(**settings):
    return models.with_lora(models.build("Llama"), **settings)


def factors(model, adapter="default"):
    return {
        name: (layer.lora_A[adapter].weight.detach().clone(), layer.lora_B[adapter].weight.detach().clone())
        for name, layer in lora_layers(model, adapter).items()
    }


@pytest.mark.parametrize("offset", ["adapter", "none", "weights"])
@pytest.mark.parametrize("stability", ["forward", "backward"])
def test_the_factors_are_theorem_3_1s(offset, stability):
    """Against the singular vectors of the autograd gradient, at Algorithm 1's scale."""
    data, gamma = models.batches("Llama"), GAMMAS[offset]
    base = models.build("Llama")
    gradients = models.autograd_gradients(base, data, [loss_terms(base, batch) for batch in data])
    model = fresh()
    loraga.initialize(model, data, offset=offset, stability=stability, estimator="exact", **QUIET)
    for name, (A, B) in factors(model).items():
        G = gradients[name].double()
        U, _, Vh = torch.linalg.svd(G, full_matrices=False)
        squared = math.sqrt(G.shape[0] if stability == "forward" else G.shape[1]) / gamma
        torch.testing.assert_close(A.T.double() @ A.double(), squared * Vh[:2].T @ Vh[:2], rtol=0, atol=2e-4 * squared)
        torch.testing.assert_close(
            B.double() @ B.T.double(), squared * U[:, 2:4] @ U[:, 2:4].T, rtol=0, atol=2e-4 * squared
        )


def test_parameters_are_written_in_place():
    model = fresh()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loraga.initialize(model, models.batches("Llama"), **QUIET)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    start = models.logits(model, models.batches("Llama", 1)[0])
    model(**models.batches("Llama", 1)[0]).loss.backward()
    optimizer.step()
    assert not torch.equal(models.logits(model, models.batches("Llama", 1)[0]), start)


def test_the_first_step_goes_along_the_gradient_as_reported():
    """A real SGD step of a small rate moves eta B A by about -rate * zeta * G: cosine and length are the report's."""
    data = models.batches("Llama", 1)
    base = models.build("Llama")
    gradients = models.autograd_gradients(base, data, [1.0])
    model = fresh()
    model.eval()
    report = loraga.initialize(model, data, estimator="exact", **QUIET)
    before = {name: B.double() @ A.double() for name, (A, B) in factors(model).items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model(**data[0]).loss.backward()
    optimizer.step()
    for name, (A, B) in factors(model).items():
        layer, G = report.layers[name], gradients[name].double()
        step = -(B.double() @ A.double() - before[name]) * layer.eta / 1e-4
        cosine = float((step * G).sum() / step.norm() / G.norm())
        assert cosine == pytest.approx(layer.cosine, abs=5e-3)
        assert float(step.norm() / G.norm()) == pytest.approx(layer.step_norm, rel=5e-3)
        assert cosine == pytest.approx(math.sqrt(layer.coverage), abs=5e-3)


def test_ranks_and_scalings_are_each_layers_own():
    data = models.batches("Llama")
    model = fresh(rank_pattern={"q_proj": 4, "layers.1.mlp.up_proj": 1}, alpha_pattern={"down_proj": 9})
    report = loraga.initialize(model, data, **QUIET)
    assert report.layers["model.layers.0.self_attn.q_proj"].rank == 4
    assert report.layers["model.layers.1.mlp.up_proj"].rank == 1
    assert report.layers["model.layers.0.mlp.down_proj"].eta == pytest.approx(9 / math.sqrt(2))
    assert report.function_change == 0
    A, B = factors(model)["model.layers.0.self_attn.q_proj"]
    assert (A.shape[0], B.shape[1]) == (4, 4)
    torch.testing.assert_close(A @ A.T, torch.eye(4) * math.sqrt(32) / 16, rtol=0, atol=1e-4)


def test_gradients_can_be_estimated_on_the_base_and_reused():
    data = models.batches("Llama")
    gradients = loraga.estimate_gradients(models.build("Llama"), data, rank=2, **QUIET)
    reused, direct = fresh(), fresh()
    report = loraga.initialize(reused, gradients=gradients, **QUIET)
    loraga.initialize(direct, data, **QUIET)
    assert report.estimator == "given"
    assert report.function_change is None
    for name, (A, B) in factors(direct).items():
        assert torch.equal(factors(reused)[name][0], A)
        assert torch.equal(factors(reused)[name][1], B)


def test_the_same_seed_gives_the_same_adapter_bit_for_bit():
    data, starts = models.batches("Llama"), []
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(noise)
        model = fresh()
        loraga.initialize(model, data, seed=seed, scheme="lora_ga", gamma=64, **QUIET)
        starts.append(factors(model))
    for name, (A, B) in starts[0].items():
        assert torch.equal(A, starts[1][name][0])
        assert torch.equal(B, starts[1][name][1])


def test_another_seed_draws_other_factors():
    starts = []
    for seed in (0, 1, 0):
        model = fresh(use_rslora=False)
        loraga.initialize(model, scheme="gaussian", seed=seed, **QUIET)
        starts.append(factors(model))
    for name, (A, B) in starts[0].items():
        assert torch.equal(A, starts[2][name][0])
        assert not torch.equal(A, starts[1][name][0])
        assert not torch.equal(B, starts[1][name][1])


def test_a_weight_function_says_what_each_batch_counts():
    data, plain, weighted, reused = models.batches("Llama"), fresh(), fresh(), fresh()

    def weight(batch):
        return 100.0 if torch.equal(batch["labels"], data[0]["labels"]) else 1.0

    assert loraga.initialize(weighted, data, weight=weight, **QUIET).loss_terms == 102
    loraga.initialize(plain, data, **QUIET)
    gradients = loraga.estimate_gradients(fresh(), data, rank=2, weight=weight, **QUIET)
    loraga.initialize(reused, data, gradients=gradients, **QUIET)
    for name, (A, _) in factors(weighted).items():
        assert torch.equal(A, factors(reused)[name][0])
        assert not torch.allclose(A, factors(plain)[name][0], rtol=1e-2)


@pytest.mark.parametrize(
    ("scheme", "rslora"), [("lora_ga", True), ("stable_output", True), ("gaussian", False), ("gradient", False)]
)
def test_every_scheme_keeps_the_function_at_its_own_scaling(scheme, rslora):
    data = models.batches("Llama")
    model = fresh(use_rslora=rslora)
    report = loraga.initialize(model, data, scheme=scheme, **QUIET)
    assert report.function_change == 0
    assert report.scheme == scheme
    wrong = fresh(use_rslora=not rslora)
    with pytest.raises(ScalingError, match=rf"layer model.*q_proj: its scaling .* LoraConfig\(use_rslora={rslora}\)"):
        loraga.initialize(wrong, data, scheme=scheme, **QUIET)


def test_a_scheme_without_gradient_needs_no_batches():
    report = loraga.initialize(fresh(), scheme="stable_output", **QUIET)
    assert report.cosine is None
    assert len(report.layers) == 14


def test_offset_none_leaves_a_plain_lora_on_an_untouched_base(tmp_path):
    data = models.batches("Llama")
    model = fresh()
    report = loraga.initialize(model, data, offset="none", **QUIET)
    assert 0 < report.function_change < 1e-2
    assert report.gamma == 65536
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    assert not (tmp_path / "loraga.json").exists()
    assert not any("offset" in key for key in model.state_dict())
    plain = PeftModel.from_pretrained(models.build("Llama"), tmp_path)
    assert torch.equal(models.logits(plain, data[0]), models.logits(model, data[0]))
    with model.disable_adapter():
        assert torch.equal(models.logits(model, data[0]), models.logits(models.build("Llama"), data[0]))


def test_offset_none_names_the_gamma_that_would_do():
    data, model = models.batches("Llama"), fresh()
    before = state_of(model)
    with pytest.raises(OffsetError, match=r"gamma=\d+ would meet it") as error:
        loraga.initialize(model, data, offset="none", gamma=64, **QUIET)
    assert_same_state(before, state_of(model))
    enough = float(str(error.value).split("gamma=")[1].split(" ")[0])
    assert loraga.initialize(model, data, offset="none", gamma=enough, **QUIET).function_change <= 1e-2
    with pytest.raises(OffsetError, match="pass batches, or check=False"):
        loraga.initialize(fresh(), gradients={}, offset="none", **QUIET)


@pytest.mark.parametrize("scheme", ["gradient", "gaussian"])
def test_offset_none_names_no_gamma_to_a_scheme_without_one(scheme):
    model = fresh(use_rslora=False)
    with pytest.raises(OffsetError, match=r"more than max_change 0\.01; use offset='adapter'"):
        loraga.initialize(model, models.batches("Llama"), scheme=scheme, offset="none", **QUIET)


def test_other_kinds_of_adapters_are_refused_with_the_reason():
    data = models.batches("Llama")
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"adapter 'default' is ADALORA; only plain LoRA can be initialised"):
        loraga.initialize(get_peft_model(models.build("Llama"), config), data, **QUIET)
    model = models.with_lora(models.build("Llama"), task_type="CAUSAL_LM", alora_invocation_tokens=[3])
    with pytest.raises(AdapterError, match=r"has alora_invocation_tokens: .*; leave them out"):
        loraga.initialize(model, data, offset="none", **QUIET)


def test_an_adapter_without_numbers_is_refused():
    model = get_peft_model(
        models.build("Llama"), LoraConfig(use_rslora=True, target_modules=["q_proj"]), low_cpu_mem_usage=True
    )
    with pytest.raises(AdapterError, match=r"layer model\S+q_proj: adapter 'default' is on the meta device"):
        loraga.initialize(model, models.batches("Llama"), **QUIET)


def test_a_head_that_was_trained_before_is_part_of_the_function_and_of_the_gradient():
    data, model = models.batches("Llama"), models.with_lora(models.build("Llama"), modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"]
    head.weight.data.normal_(generator=torch.Generator().manual_seed(0), std=0.5)
    before = models.logits(model, data[0])
    used = models.build("Llama")
    used.lm_head.weight.data.copy_(head.weight.data)
    expected = models.autograd_gradients(used, data, [loss_terms(used, batch) for batch in data])
    for name, gradient in loraga.estimate_gradients(model, data, rank=16, progress=False).items():
        assert models.relative_difference(gradient.U @ torch.diag(gradient.S) @ gradient.Vh, expected[name]) < 1e-5
    assert loraga.initialize(model, data, **QUIET).function_change == 0
    assert torch.equal(models.logits(model, data[0]), before)


def test_offset_in_the_weights_keeps_the_function_and_says_that_the_base_is_lost(tmp_path):
    data, base = models.batches("Llama"), models.build("Llama")
    original = {name: parameter.clone() for name, parameter in base.named_parameters()}
    expected = models.logits(base, data[0])
    model = models.with_lora(base)
    report = loraga.initialize(model, data, offset="weights", **QUIET)
    assert models.relative_difference(models.logits(model, data[0]), expected) < 1e-5
    assert all(layer.rounding < 1e-5 for layer in report.layers.values())
    weight = base.model.layers[0].self_attn.q_proj.base_layer.weight
    A, B = factors(model)["model.layers.0.self_attn.q_proj"]
    eta = report.layers["model.layers.0.self_attn.q_proj"].eta
    torch.testing.assert_close(weight, original["model.layers.0.self_attn.q_proj.weight"] - eta * B @ A)
    with pytest.warns(UserWarning, match="folded into the base weights"), model.disable_adapter():
        assert models.relative_difference(models.logits(model, data[0]), expected) > 1e-2
    models.train(model, data)
    trained = models.logits(model, data[0])
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(models.build("Llama"), tmp_path)
    assert models.relative_difference(models.logits(plain, data[0]), trained) < 1e-5
    again = loraga.load(models.build("Llama"), tmp_path)
    assert models.relative_difference(models.logits(again, data[0]), trained) < 1e-5


def test_a_kept_original_is_what_disable_adapter_gives():
    data, base = models.batches("Llama"), models.build("Llama")
    expected = models.logits(base, data[0])
    model = models.with_lora(base)
    loraga.initialize(model, data, offset="weights", keep_original=True, **QUIET)
    start = models.logits(model, data[0])
    with model.disable_adapter():
        assert torch.equal(models.logits(model, data[0]), expected)
    assert torch.equal(models.logits(model, data[0]), start)


def test_offset_in_the_weights_is_refused_where_it_would_change_the_function():
    data = models.batches("Llama")
    with pytest.raises(OffsetError, match=r"layer model\S+: with lora_dropout > 0"):
        loraga.initialize(fresh(lora_dropout=0.1), data, offset="weights", **QUIET)
    tied = models.build("Llama")
    tied.model.layers[1].mlp.up_proj.weight = tied.model.layers[0].mlp.up_proj.weight
    with pytest.raises(OffsetError, match=r"layer model.layers.0.mlp.up_proj: its weight is tied"):
        loraga.initialize(models.with_lora(tied), data, offset="weights", **QUIET)
    with pytest.raises(OffsetError, match=r"rounds part of the offset away.*allow_rounding=True"):
        loraga.initialize(models.with_lora(models.build("Llama").bfloat16()), data, offset="weights", **QUIET)
    report = loraga.initialize(
        models.with_lora(models.build("Llama").bfloat16()), data, offset="weights", allow_rounding=True, **QUIET
    )
    assert all(1e-4 < layer.rounding < 0.2 for layer in report.layers.values())


def test_a_second_adapter_is_started_beside_a_trained_one():
    data = models.batches("Llama")
    model = fresh()
    loraga.initialize(model, data, **QUIET)
    models.train(model, data)
    first = models.logits(model, data[0])
    model.add_adapter("second", LoraConfig(r=3, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"]))
    report = loraga.initialize(model, data, adapter_name="second", **QUIET)
    assert len(report.layers) == 4
    assert torch.equal(models.logits(model, data[0]), first)
    model.set_adapter("second")
    assert torch.equal(models.logits(model, data[0]), models.logits(models.build("Llama"), data[0]))


def test_an_output_head_is_started_if_the_adapter_targets_it():
    data = models.batches("Llama")
    model = fresh(target_modules=["q_proj", "lm_head"])
    report = loraga.initialize(model, data, **QUIET)
    assert set(report.layers) == {"lm_head", *(f"model.layers.{i}.self_attn.q_proj" for i in range(2))}


def test_an_offset_is_not_folded_into_a_head_whose_weight_peft_would_save():
    model = fresh(target_modules=["q_proj", "lm_head"])
    before = models.logits(model, models.batches("Llama")[0])
    with pytest.raises(OffsetError, match="layer lm_head: PEFT saves the base weight of a head that it adapts"):
        loraga.initialize(model, models.batches("Llama"), offset="weights", **QUIET)
    assert torch.equal(models.logits(model, models.batches("Llama")[0]), before)


def test_few_directions_are_a_warning_that_names_the_layer():
    batch = models.batches("Llama", 1)[0]
    labels = torch.full_like(batch["labels"], -100)
    labels[1, 5] = batch["input_ids"][1, 5]
    model = fresh(r=4, target_modules=["down_proj"])
    with pytest.warns(UserWarning, match=r"layer model.layers.1.mlp.down_proj has 1 singular directions and rank 4"):
        report = loraga.initialize(model, [{**batch, "labels": labels}], **QUIET)
    assert report.function_change == 0
    A, B = factors(model)["model.layers.1.mlp.down_proj"]
    assert not B.any()
    assert (A.norm(dim=1) > 0).all()


class Routed(nn.Module):
    """A model of which a part is idle, another gets a zero gradient, and an embedding is adapted."""

    def __init__(self):
        super().__init__()
        self.embedding, self.used = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.idle, self.zeroed = nn.Linear(6, 6), nn.Linear(6, 6)
        self.config = None

    def forward(self, input_ids, labels):
        hidden = self.used(self.embedding(input_ids))
        logits = hidden + 0.0 * self.zeroed(hidden)
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def routed(*targets):
    torch.manual_seed(0)
    model = get_peft_model(Routed(), LoraConfig(r=1, lora_alpha=2, use_rslora=True, target_modules=list(targets)))
    data = [{"input_ids": torch.randint(0, 10, (3, 4)), "labels": torch.randint(0, 6, (3, 4))} for _ in range(2)]
    return model, data


@pytest.mark.parametrize(
    ("layer", "error", "reason"),
    [
        ("idle", GradientError, "layer idle: it got no gradient: .* or the model reads its weight without calling it"),
        ("zeroed", GradientError, "layer zeroed: its gradient is zero"),
        ("embedding", AdapterError, "layer embedding: a Embedding is not a linear layer"),
    ],
)
def test_a_layer_that_cannot_be_started_is_an_error_or_stays_plain_lora(layer, error, reason):
    model, data = routed("used", layer)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(error, match=f"{reason}.*on_missing='lora'"):
        loraga.initialize(model, data, **QUIET)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    with pytest.warns(UserWarning, match=f"kept as plain LoRA: {reason}"):
        report = loraga.initialize(model, data, on_missing="lora", **QUIET)
    assert set(report.skipped) == {layer}
    assert set(report.layers) == {"used"}
    assert f"skipped {layer}" in str(report)


def test_models_that_cannot_be_started_are_refused():
    data = models.batches("Llama")
    with pytest.raises(AdapterError, match=r"LlamaForCausalLM has no LoRA adapter; wrap it first"):
        loraga.initialize(models.build("Llama"), data, **QUIET)
    injected = models.build("Llama")
    injected.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="injected by the model's own add_adapter"):
        loraga.initialize(injected, data, **QUIET)
    trained = fresh()
    models.train(trained, data)
    with pytest.raises(AdapterError, match=r"layer model\S+: adapter 'default' is trained already"):
        loraga.initialize(trained, data, **QUIET)
    merged = fresh()
    merged.merge_adapter()
    with pytest.raises(AdapterError, match=r"layer model\S+: an adapter is merged into the base weight"):
        loraga.initialize(merged, data, **QUIET)
    twice = fresh()
    loraga.initialize(twice, data, **QUIET)
    with pytest.raises(AdapterError, match=r"layer model\S+: adapter 'default' is initialised already"):
        loraga.initialize(twice, data, **QUIET)
    with pytest.raises(AdapterError, match="trained already, or was made with an init_lora_weights"):
        loraga.initialize(fresh(init_lora_weights=False), data, **QUIET)
    with pytest.raises(AdapterError, match=r"layers model\S+, .* and 9 more: DoraLinearVariant is in use"):
        loraga.initialize(fresh(use_dora=True), data, on_missing="error", **QUIET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offset": "base"}, "offset='base' is unknown; choose from 'adapter', 'weights', 'none'"),
        ({"scheme": "pissa"}, "scheme='pissa' is unknown; choose from 'lora_ga'"),
        ({"stability": "both"}, "stability='both' is unknown"),
        ({"on_missing": "skip"}, "on_missing='skip' is unknown"),
    ],
)
def test_an_unknown_choice_is_refused(settings, message):
    with pytest.raises(AdapterError, match=message):
        loraga.initialize(fresh(), models.batches("Llama"), **settings, **QUIET)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
def test_a_gamma_that_is_no_positive_number_is_refused(gamma):
    with pytest.raises(ScalingError, match="gamma is"):
        loraga.initialize(fresh(), models.batches("Llama"), gamma=gamma, **QUIET)


def test_batches_are_needed():
    with pytest.raises(BatchError, match="batches is empty"):
        loraga.initialize(fresh(), **QUIET)
    with pytest.raises(BatchError, match="batches is empty"):
        loraga.initialize(fresh(), [], **QUIET)


def test_gradients_of_another_model_are_refused():
    data = models.batches("Llama")
    other = loraga.estimate_gradients(models.build("OPT"), models.batches("OPT"), rank=2, **QUIET)
    with pytest.raises(GradientError, match=r"gradients are of another model: they name model.decoder\S+"):
        loraga.initialize(fresh(), gradients=other, **QUIET)
    narrow = loraga.estimate_gradients(models.build("Llama"), data, rank=2, **QUIET)
    name = "model.layers.0.mlp.up_proj"
    narrow[name] = narrow["model.layers.0.mlp.down_proj"]
    with pytest.raises(GradientError, match=r"layer model.layers.0.mlp.up_proj has shape \(40, 32\), its gradient"):
        loraga.initialize(fresh(), gradients=narrow, **QUIET)
    small = loraga.estimate_gradients(models.build("Llama"), data, rank=1, **QUIET)
    with pytest.raises(GradientError, match=r"layer model\S+: the gradient has 4 columns and rank 4 needs 8"):
        loraga.initialize(fresh(r=4), gradients=small, **QUIET)


class Bypassed(nn.Module):
    """Stands for fused kernels: runs base weights plus A and B itself and never asks PEFT's forward."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        base, A, B = self.layer.base_layer, self.layer.lora_A["default"], self.layer.lora_B["default"]
        if self.layer.disable_adapters:
            return base(x)
        return base(x) + B(A(x)) * self.layer.scaling["default"]


@pytest.mark.parametrize("offset", ["adapter"])
def test_an_offset_that_fused_kernels_ignore_is_found_and_undone(offset):
    data, model = models.batches("Llama"), fresh()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.forward = Bypassed(layer).forward
    before = state_of(model)
    with pytest.raises(OffsetError, match=r"does not reach the model's forward.*The model is as it was"):
        loraga.initialize(model, data, offset=offset, **QUIET)
    assert_same_state(before, state_of(model))
    assert type(model) is type(fresh())
    assert not any(layer.lora_variant for layer in lora_layers(model, "default").values())


@pytest.mark.parametrize("failing", [0, 5, 13])
@pytest.mark.parametrize("offset", ["adapter", "weights"])
def test_an_interrupted_write_leaves_the_model_as_it_was(failing, offset, monkeypatch):
    data, model, calls = models.batches("Llama"), fresh(), itertools.count()

    def attach(*arguments, **settings):
        if next(calls) == failing:
            raise KeyboardInterrupt("stop")
        attach_offset(*arguments, **settings)

    monkeypatch.setattr("loraga.initialization.attach_offset", attach)
    model.train()
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        loraga.initialize(model, data, offset=offset, **QUIET)
    assert_same_state(before, state_of(model))
    monkeypatch.undo()
    assert loraga.initialize(model, data, **QUIET).function_change == 0


def test_what_was_done_is_logged_and_printed(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="loraga"):
        report = loraga.initialize(fresh(), models.batches("Llama"), progress=True)
    assert "lora_ga, offset=adapter, gamma=16: 14 layers from" in caplog.text
    shown = capsys.readouterr().err
    assert "gradient: 100%" in shown
    assert "3/3" in shown
    table = str(report)
    assert "... and 4 layers with a higher cosine" in table
    assert "saved as a plain LoRA of rank 4 (twice the trained rank)" in table
    assert json.loads(json.dumps(report.to_dict()))["layers"].keys() == report.layers.keys()


def test_a_loss_that_draws_random_numbers_is_compared_with_the_same_draws():
    report = loraga.initialize(
        fresh(), models.batches("Llama"), loss=lambda m, b: m(**b).loss * (1 + 0.1 * torch.rand(())), **QUIET
    )
    assert report.function_change == 0


def test_a_second_adapter_is_checked_without_the_firsts_trained_head():
    data = models.batches("Llama")
    model = fresh(modules_to_save=["lm_head"])
    models.train(model, data)
    model.add_adapter("b", LoraConfig(r=1, lora_alpha=2, use_rslora=True, target_modules=["q_proj"]))
    assert loraga.initialize(model, data, adapter_name="b", **QUIET).function_change == 0


def test_one_batch_instead_of_a_list_is_refused_with_the_remedy():
    batch = models.batches("Llama", 1)[0]
    with pytest.raises(BatchError, match=r"one batch, not an iterable of batches; pass \[batch\]"):
        loraga.initialize(fresh(), batch, **QUIET)
    with pytest.raises(BatchError, match="num_batches is -1"):
        loraga.initialize(fresh(), [batch], num_batches=-1, **QUIET)


def test_dora_is_refused_with_an_offset_in_the_weights():
    with pytest.raises(OffsetError, match="DoraLinearVariant is in use; offset='weights' knows plain LoRA only"):
        loraga.initialize(fresh(use_dora=True), models.batches("Llama"), offset="weights", **QUIET)
