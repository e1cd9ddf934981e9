import itertools

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from loraga import AdapterError, BatchError, GradientError, estimate_gradients
from loraga.accumulate import FactorAccumulator, MatrixAccumulator
from loraga.loss import loss_terms
from tests import models
from tests.architectures.kinds import VOCABULARY
from tests.test_passes import assert_same_state, prepared, state_of


def dense(gradient):
    return gradient.U @ torch.diag(gradient.S) @ gradient.Vh


@pytest.mark.parametrize("estimator", ["streaming", "exact"])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_are_the_mean_over_loss_terms(estimator, count):
    """At rank 16 every layer keeps all its columns, so that the factors are the whole gradient."""
    model, data = models.build("Llama"), models.batches("Llama", count)
    expected = models.autograd_gradients(model, data, [loss_terms(model, batch) for batch in data])
    found = estimate_gradients(model, data, rank=16, estimator=estimator, progress=False)
    assert len({loss_terms(model, batch) for batch in data}) == count  # else the weights would not matter
    assert set(found) == set(expected) - {"lm_head"}
    for name, gradient in found.items():
        assert gradient.loss_terms == sum(loss_terms(model, batch) for batch in data)
        assert models.relative_difference(dense(gradient), expected[name]) < 1e-5


def test_the_exact_estimator_keeps_the_leading_triplets():
    model, data = models.build("Llama"), models.batches("Llama", 2)
    expected = models.autograd_gradients(model, data, [loss_terms(model, batch) for batch in data])
    for name, gradient in estimate_gradients(model, data, rank=2, estimator="exact", progress=False).items():
        values = torch.linalg.svdvals(expected[name].double())
        assert gradient.columns == 8
        torch.testing.assert_close(gradient.S.double(), values[:8], rtol=1e-4, atol=1e-9)
        assert gradient.norm == pytest.approx(float(torch.linalg.vector_norm(values)), rel=1e-5)


def test_algorithm_1_has_one_layers_matrix_alive_at_most(monkeypatch):
    alive, most = set(), []

    def add(self, *call, original=MatrixAccumulator.add):
        alive.add(id(self))
        most.append(len(alive))
        original(self, *call)

    def finish(self, terms, original=MatrixAccumulator.finish):
        alive.discard(id(self))
        return original(self, terms)

    monkeypatch.setattr(MatrixAccumulator, "add", add)
    monkeypatch.setattr(MatrixAccumulator, "finish", finish)
    data = models.batches("Llama", 2)
    estimate_gradients(models.build("Llama"), data[:1], rank=2, estimator="exact", progress=False)
    assert max(most) == 1
    assert len(most) == 14
    estimate_gradients(models.build("Llama"), data, rank=2, estimator="exact", progress=False)
    assert max(most) == 14


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["Llama", "OPT", "T5", "ViT"])  # transformers itself starts no graph at ViT's pixels
def test_checkpointing_changes_nothing_and_stays_on(name, reentrant):
    data = models.batches(name, 2)
    expected = estimate_gradients(models.build(name), data, rank=8, progress=False)
    model = models.build(name)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    forwards = []
    layer = next(module for module in model.modules() if getattr(module, "gradient_checkpointing", False))
    inner = next(module for module in layer.modules() if isinstance(module, nn.Linear))
    inner.register_forward_hook(lambda *call: forwards.append(1))
    found = estimate_gradients(model, data, rank=8, progress=False)
    assert len(forwards) == 2 * len(data)  # once forward, once recomputed
    assert found.keys() == expected.keys()
    for layer_name, gradient in found.items():
        assert models.relative_difference(dense(gradient), dense(expected[layer_name])) < 1e-5


@pytest.mark.parametrize("failing_call", [None, 0, 3, 9])
def test_estimating_leaves_no_trace(failing_call, monkeypatch):
    model, data = prepared(), models.batches("OPT", 3)
    before, calls = state_of(model), itertools.count()

    def add(self, *call, original=MatrixAccumulator.add):
        if next(calls) == failing_call:
            raise KeyboardInterrupt("stop")
        original(self, *call)

    monkeypatch.setattr(MatrixAccumulator, "add", add)
    if failing_call is None:
        estimate_gradients(model, data, rank=8, progress=False)
    else:
        with pytest.raises(KeyboardInterrupt, match="stop"):
            estimate_gradients(model, data, rank=8, progress=False)
    assert_same_state(before, state_of(model))


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    model, data = models.build("Llama"), models.batches("Llama")
    first = estimate_gradients(model, data, rank=1, seed=3, progress=False)
    torch.manual_seed(99)
    again = estimate_gradients(model, iter(data), rank=1, seed=3, progress=False)
    other = estimate_gradients(model, data, rank=1, seed=4, progress=False)
    for name, gradient in first.items():
        assert all(torch.equal(getattr(gradient, key), getattr(again[name], key)) for key in ("U", "S", "Vh"))
    assert any(not torch.equal(first[name].U, other[name].U) for name in first)


def test_a_peft_models_gradients_are_those_of_its_base():
    data = models.batches("Llama")
    expected = estimate_gradients(models.build("Llama"), data, rank=2, progress=False)
    model = models.with_lora(models.build("Llama"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    found = estimate_gradients(model, data, rank=2, progress=False)
    assert all(torch.equal(found[name].Vh, expected[name].Vh) for name in expected)


def test_a_custom_loss_and_weight_are_used():
    model, data = models.build("Llama"), models.batches("Llama", 2)

    def tripled(model, batch):
        return 3 * model(**batch).loss

    expected = models.autograd_gradients(model, data, [1.0, 4.0])
    weights = iter([1.0, 4.0])
    found = estimate_gradients(model, data, rank=16, loss=tripled, weight=lambda batch: next(weights), progress=False)
    for name, gradient in found.items():
        assert models.relative_difference(dense(gradient), 3 * expected[name]) < 1e-5


def test_half_precision_models_are_estimated_in_float32():
    model, data = models.build("Llama"), models.batches("Llama", 2)
    expected = estimate_gradients(model, data, rank=16, progress=False)
    for name, gradient in estimate_gradients(model.bfloat16(), data, rank=16, progress=False).items():
        assert gradient.U.dtype == gradient.S.dtype == gradient.Vh.dtype == torch.float32
        assert models.relative_difference(dense(gradient), dense(expected[name])) < 0.1


def test_only_the_first_batches_are_taken():
    model, data = models.build("Llama"), models.batches("Llama", 4)
    endless = itertools.cycle(data)
    found = estimate_gradients(model, endless, rank=2, num_batches=2, progress=False)
    expected = estimate_gradients(model, data[:2], rank=2, num_batches=None, progress=False)
    assert all(torch.equal(found[name].S, expected[name].S) for name in expected)
    assert next(endless) is data[2]


def test_a_layer_that_the_loss_does_not_reach_is_left_out():
    model = models.build("Llama")
    found = estimate_gradients(
        model,
        models.batches("Llama", 1),
        rank=1,
        loss=lambda m, b: m.model.layers[0].mlp(m.model.embed_tokens(b["input_ids"])).square().mean(),
        progress=False,
    )
    assert set(found) == {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}


def test_what_cannot_be_estimated_is_an_error_that_names_it():
    model, data = models.build("Llama"), models.batches("Llama", 3)
    with pytest.raises(GradientError, match="rank is 0"):
        estimate_gradients(model, data, rank=0, progress=False)
    with pytest.raises(GradientError, match="estimator='fast' is unknown"):
        estimate_gradients(model, data, rank=1, estimator="fast", progress=False)
    with pytest.raises(GradientError, match="batch 0: the loss does not depend on any of the adapted layers"):
        estimate_gradients(model, data, rank=1, loss=lambda m, b: torch.tensor(1.0), progress=False)
    with pytest.raises(BatchError, match="batch 1: the loss is nan"):
        values = iter([1.0, float("nan")])
        estimate_gradients(model, data, rank=1, loss=lambda m, b: m(**b).loss * next(values), progress=False)
    with pytest.raises(AdapterError, match="has no linear layer"):
        estimate_gradients(nn.Embedding(3, 2), data, rank=1, progress=False)


@pytest.mark.parametrize("rank", [1, 8])
def test_a_gradient_that_is_not_finite_names_layer_and_batch(rank):
    model, data = models.build("Llama"), models.batches("Llama", 2)
    count = itertools.count()

    def poison(module, args, output):
        if next(count) == 1:
            output = output.clone()
            output.register_hook(lambda gradient: gradient * float("inf"))
            return output
        return None

    model.model.layers[1].mlp.down_proj.register_forward_hook(poison)
    with pytest.raises(GradientError, match=r"layer model.layers.1.mlp.\w+, batch 1: .* not finite"):
        estimate_gradients(model, data, rank=rank, progress=False)


def test_a_callers_autocast_does_not_reach_the_algebra():
    model, data = models.build("Llama"), models.batches("Llama", 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = estimate_gradients(model, data, rank=1, progress=False)
    for gradient in found.values():
        torch.testing.assert_close(gradient.U.T @ gradient.U, torch.eye(gradient.columns), rtol=0, atol=1e-5)


@pytest.mark.parametrize("accumulator", [FactorAccumulator, MatrixAccumulator])
def test_neither_summing_nor_factoring_runs_under_a_callers_autocast(accumulator, monkeypatch):
    seen = set()

    def watched(name):
        original = getattr(accumulator, name)

        def run(self, *call):
            seen.add((name, torch.is_autocast_enabled("cpu")))
            return original(self, *call)

        return run

    for name in ("add", "finish"):
        monkeypatch.setattr(accumulator, name, watched(name))
    rank = 1 if accumulator is FactorAccumulator else 8
    with torch.autocast("cpu", dtype=torch.bfloat16):
        estimate_gradients(models.build("Llama"), models.batches("Llama", 2), rank=rank, progress=False)
    assert seen == {("add", False), ("finish", False)}


def test_a_callers_no_grad_changes_nothing():
    model, data = models.build("Llama"), models.batches("Llama", 2)
    expected = estimate_gradients(model, data, rank=1, progress=False)
    with torch.no_grad():
        found = estimate_gradients(model, data, rank=1, progress=False)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(found[name].U, gradient.U) for name, gradient in expected.items())


def test_dropout_that_a_checkpointing_layer_reads_from_its_config_is_off():
    from transformers import FalconConfig, FalconForCausalLM

    def gradients(rate, checkpointing):
        torch.manual_seed(0)
        config = FalconConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            hidden_dropout=rate, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = FalconForCausalLM(config)
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        found = estimate_gradients(model, models.batches("Llama", 1), rank=8, progress=False)
        assert model.config.hidden_dropout == rate
        return found

    expected = gradients(0.0, checkpointing=False)
    for name, gradient in gradients(0.5, checkpointing=True).items():
        assert models.relative_difference(gradient.S, expected[name].S) < 1e-4


def autocast_loss(model, batch):
    with torch.autocast("cpu", torch.float16):
        return model(**batch).loss


@pytest.mark.parametrize("estimator", ["streaming", "exact"])
@pytest.mark.parametrize("way", ["weights", "autocast"])
@pytest.mark.parametrize("factor", [1.0, 2.0**-10, 2.0**14])
def test_gradients_of_float16_neither_vanish_nor_overflow(factor, way, estimator):
    """At a loss of 2^-10 most entries of dY are below float16's smallest number, at 2^14 some are above its largest."""
    model, data = models.build("Llama").half().float(), models.batches("Llama", 2)
    expected = models.autograd_gradients(model, data, [loss_terms(model, batch) for batch in data])
    model = models.build("Llama").half() if way == "weights" else models.build("Llama")
    own = autocast_loss if way == "autocast" else lambda model, batch: model(**batch).loss
    loss = lambda model, batch: own(model, batch).float() * factor  # noqa: E731
    found = estimate_gradients(model, data, rank=16, estimator=estimator, loss=loss, progress=False)
    assert len(found) == 14
    for name, gradient in found.items():
        assert gradient.loss_terms == sum(loss_terms(model, batch) for batch in data)
        assert models.relative_difference(dense(gradient) / factor, expected[name]) < 0.02, name


def test_what_is_not_finite_in_float16_at_any_scale_of_the_loss_is_an_error():
    model, data = models.build("Llama").half(), models.batches("Llama", 2)
    model.lm_head.register_full_backward_hook(lambda _, inputs, outputs: (inputs[0] * float("inf"),))
    with pytest.raises(GradientError, match=r"layer model.layers\.\S+, batch 0: the gradient has entries that are not"):
        estimate_gradients(model, data, rank=2, progress=False)


@pytest.mark.parametrize("offloaded", ["blocks", "all of it"])
def test_a_base_that_is_offloaded_gives_the_same_gradient(offloaded):
    model, data = models.build("Llama"), models.batches("Llama", 2)
    expected = estimate_gradients(model, data, rank=2, progress=False)
    for module in model.model.layers if offloaded == "blocks" else [model]:
        cpu_offload(module, execution_device=torch.device("cpu"))
    assert model.model.layers[0].mlp.up_proj.weight.is_meta
    found = estimate_gradients(model, data, rank=2, progress=False)
    assert list(found) == list(expected)
    assert all(torch.equal(dense(found[name]), dense(expected[name])) for name in expected)
