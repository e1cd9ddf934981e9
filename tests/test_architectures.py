"""Promises 1, 2, 3, 5, 6 and 7 on tiny random models of every registered architecture.

`python -m tests.architectures` runs this file and writes what came out into docs/architectures.md.
"""

import re

import numpy as np
import pytest
import torch
from peft import PeftModel

import loraga
from loraga.layers import lora_layers
from loraga.loss import loss_terms
from loraga.weights import tied_layers
from tests import models
from tests.architectures import FAMILIES, table
from tests.test_passes import assert_same_state, state_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*singular directions:UserWarning",
    # PEFT saves the base weight of a head that it adapts
    "ignore:Setting `save_embedding_layers` to `True` as embedding layers found:UserWarning",
)
working = pytest.mark.parametrize("name", models.WORKING)
FIRST_OF_FAMILY = {next(iter(family)) for family in FAMILIES.values()}
working_but_most_in_torture = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FIRST_OF_FAMILY else pytest.mark.torture) for name in models.WORKING],
)
refused = pytest.mark.parametrize("name", models.REFUSED)
# PEFT uses these patterns, and then looks for them among modules, not among parameters
PATTERNS = "ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"


@pytest.fixture(autouse=True)
def counted(request, record_property):
    if "name" in request.fixturenames:
        record_property("promises on architectures", 1)


def settings_of(name):
    return {**models.ARCHITECTURES[name].settings, "progress": False}


def data_of(name):
    return models.batches(name, 2)


def base_of(name):
    """The base model, frozen as PEFT freezes it, since torch's order of summing depends on that too."""
    return models.build(name).requires_grad_(False)


def started(name, **settings):
    model = models.with_lora(models.build(name), name, **settings)
    return model, loraga.initialize(model, data_of(name), **settings_of(name))


def trained(name):
    model, _ = started(name, lora_dropout=0.1)
    model.eval()
    models.train(model, data_of(name))
    return model


def seeded_logits(model, batch, name):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (Wav2Vec2 and Whisper draw masks from it in train mode)
    return models.logits(model, batch, name)


@working
def test_the_function_is_kept_bit_for_bit(name):
    batch = data_of(name)[0]
    reference = base_of(name)
    model, report = started(name, lora_dropout=0.1)
    assert report.function_change == 0
    expected = models.logits(reference, batch, name)
    assert torch.equal(models.logits(model.eval(), batch, name), expected)
    dropouts = [layer.lora_dropout for layer in lora_layers(model, "default").values()]
    for dropout in dropouts:  # the adapter's dropout alone
        dropout.train()
    assert torch.equal(models.logits(model, batch, name), expected)
    model.train(), reference.train()
    for dropout in dropouts:  # all but the adapter's, which would draw random numbers that the base draws
        dropout.eval()
    assert torch.equal(seeded_logits(model, batch, name), seeded_logits(reference, batch, name))


@working
def test_disabling_the_trained_adapter_gives_the_original_base(name):
    model = trained(name)
    for batch in data_of(name):
        expected = models.logits(base_of(name), batch, name)
        assert models.relative_difference(models.logits(model, batch, name), expected) > 1e-3
        with model.disable_adapter():
            assert torch.equal(models.logits(model, batch, name), expected)


@working
def test_what_is_saved_loads_with_plain_peft_onto_the_original_base(name, tmp_path):
    batch, model = data_of(name)[0], trained(name)
    expected = models.logits(model, batch, name)
    assert models.relative_difference(models.logits(base_of(name), batch, name), expected) > 1e-3
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(models.build(name), tmp_path).eval()
    assert models.relative_difference(models.logits(plain, batch, name), expected) < 1e-5
    again = loraga.load(models.build(name), tmp_path, is_trainable=True).eval()
    assert torch.equal(models.logits(again, batch, name), expected)
    if tied_layers(model, lora_layers(model, "default")):
        with pytest.raises(loraga.SaveError, match="its weight is tied to another module's"):
            loraga.export(model, tmp_path / "merged", merge=True)
        return
    merged = model.merge_and_unload().eval()
    assert models.relative_difference(models.logits(merged, batch, name), expected) < 1e-5


@working_but_most_in_torture
def test_the_same_seed_and_data_give_the_same_adapter_bit_for_bit(name):
    adapters = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        state = started(name)[0].state_dict()
        adapters.append({key: value for key, value in state.items() if "lora_" in key})
    first, second = adapters
    assert any("lora_offset" in key for key in first)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@working
def test_nothing_but_the_adapter_is_changed(name):
    model = models.with_lora(models.build(name), name, lora_dropout=0.1)
    model.train()
    models.logits(model, data_of(name)[0], name)  # transformers adds hooks and a problem_type in a first forward
    before, config = state_of(model), repr(model.config)
    calls = []

    def fails_in_the_second_batch(model, batch):
        calls.append(batch)
        loss = model(**batch).loss
        if len(calls) == 2:
            raise RuntimeError("in the pass")
        return loss

    with pytest.raises(RuntimeError, match="in the pass"):
        loraga.initialize(model, data_of(name), loss=fails_in_the_second_batch, **settings_of(name))
    assert_same_state(before, state_of(model))
    loraga.initialize(model, data_of(name), **settings_of(name))
    parameters, buffers, modules, *others = state_of(model)
    factors = {key: value for key, value in parameters.items() if "lora_" in key}
    assert any(not torch.equal(before[0][key][2], value[2]) for key, value in factors.items())
    assert all(before[0][key][0] == value[0] for key, value in factors.items())  # requires_grad
    parameters = {**parameters, **{key: before[0][key] for key in factors}}
    buffers = {key: value for key, value in buffers.items() if "lora_offset" not in key}
    modules = {key: value for key, value in modules.items() if "lora_offset" not in key}
    assert_same_state(before, (parameters, buffers, modules, *others))
    assert repr(model.config) == config


@working_but_most_in_torture
def test_the_start_does_not_depend_on_the_losss_magnitude(name):
    """The first step's operator G A^T A + B B^T G, relative to G."""
    data = data_of(name)
    gradients = models.autograd_gradients(models.build(name), data, [1.0] * len(data))

    def first_steps(factor):
        model = models.with_lora(models.build(name), name)
        loraga.initialize(
            model, data, loss=lambda model, batch: factor * model(**batch).loss, check=False, **settings_of(name)
        )
        steps = {}
        for layer, module in lora_layers(model, "default").items():
            A, B = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
            G = gradients[layer].double()
            steps[layer] = G @ A.T @ A + B @ (B.T @ G)
        return steps

    expected = first_steps(1.0)
    for factor in (1e-3, 1e3):
        for layer, step in first_steps(factor).items():
            assert models.relative_difference(step, expected[layer]) < 1e-3, layer


def estimated_and_expected(name, model):
    """The gradient of every adapted layer, by the estimator and by autograd on the base model's own weights."""
    data, settings = data_of(name), settings_of(name)
    weight = settings.get("weight", lambda batch: loss_terms(models.build(name), batch))
    expected = models.autograd_gradients(models.build(name), data, [weight(batch) for batch in data])
    found = loraga.estimate_gradients(model, data, rank=32, estimator="exact", **settings)
    assert set(found) == set(lora_layers(model, "default"))
    return [(layer, found[layer].U * found[layer].S @ found[layer].Vh, expected[layer]) for layer in found]


@working
def test_the_estimated_gradient_is_that_of_autograd(name):
    for layer, found, expected in estimated_and_expected(name, models.with_lora(models.build(name), name)):
        assert models.relative_difference(found, expected) < 1e-4, layer


@working
@pytest.mark.torture
def test_checkpointing_in_train_mode_changes_no_gradient(name):
    model = models.with_lora(models.build(name), name, lora_dropout=0.1)
    if not model.get_base_model().supports_gradient_checkpointing:
        pytest.skip(f"{name} has no checkpointing")
    model.get_base_model().activation_checkpointing_enable()
    model.train()
    for layer, found, expected in estimated_and_expected(name, model):
        assert models.relative_difference(found, expected) < 1e-4, layer


@refused
@pytest.mark.filterwarnings(PATTERNS)
def test_what_cannot_be_started_is_refused_with_its_reason(name, record_property):
    model = models.with_lora(models.build(name), name)
    models.logits(model, data_of(name)[0], name)  # transformers adds hooks in a first forward
    before = state_of(model)
    with pytest.raises(loraga.LoragaError, match=f"^{re.escape(models.ARCHITECTURES[name].refusal)}") as error:
        loraga.initialize(model, data_of(name), **settings_of(name))
    assert_same_state(before, state_of(model))
    record_property("refusal", str(error.value))


@refused
@pytest.mark.filterwarnings(PATTERNS)
def test_what_cannot_be_started_stays_plain_lora_beside_the_rest_when_asked_for(name, tmp_path):
    batch, base = data_of(name)[0], base_of(name)
    model = models.with_lora(models.build(name), name)
    with pytest.warns(UserWarning, match=f"kept as plain LoRA: {re.escape(models.ARCHITECTURES[name].refusal)}"):
        report = loraga.initialize(model, data_of(name), on_missing="lora", **settings_of(name))
    assert report.layers
    assert report.skipped
    model.eval()
    assert torch.equal(models.logits(model, batch, name), models.logits(base, batch, name))
    models.train(model, data_of(name))
    expected = models.logits(model, batch, name)
    assert models.relative_difference(models.logits(base, batch, name), expected) > 1e-3
    with model.disable_adapter():
        assert torch.equal(models.logits(model, batch, name), models.logits(base, batch, name))
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(models.build(name), tmp_path).eval()
    assert models.relative_difference(models.logits(plain, batch, name), expected) < 1e-5
    again = loraga.load(models.build(name), tmp_path, is_trainable=True).eval()
    assert torch.equal(models.logits(again, batch, name), expected)


def test_the_table_in_the_documentation_lists_every_architecture_with_what_is_expected_of_it():
    part = table.PART.read()
    reasons = table.recorded_reasons(part)
    assert list(reasons) == models.REFUSED
    assert all(reasons[name].startswith(models.ARCHITECTURES[name].refusal) for name in reasons)
    assert part == table.PART.joined(table.render(table.expected_outcomes(), reasons))


@pytest.mark.parametrize(
    ("ends", "cell"),
    [({"call": "failed"}, "**no**"), ({"teardown": "failed"}, "**no**"), ({"call": "skipped"}, "not run")],
)
def test_a_cell_says_yes_only_where_its_test_passed(ends, cell):
    collector = table.Collector()
    for name, test in table.expected_outcomes():
        other = ends if (name, test) == ("Llama", "test_the_function_is_kept_bit_for_bit") else {}
        for when in ("setup", "call", "teardown"):
            node = f"tests/test_architectures.py::{test}[{name}]"
            outcome = other.get(when, "passed")
            collector.pytest_runtest_logreport(pytest.TestReport(node, ("", 0, ""), {}, outcome, None, when))
    rows = [
        line for line in table.render(collector.outcomes, dict.fromkeys(models.REFUSED, "why")) if line.startswith("| ")
    ]
    (row,) = [line for line in rows if "`LlamaForCausalLM`" in line]
    assert row.split(" | ")[3:6] == [cell, "yes", "yes"]
    assert sum(cell in line for line in rows) == 1
