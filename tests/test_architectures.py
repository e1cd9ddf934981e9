"""Promises 1, 2, 3, 6 and 7 on tiny random models of eight kinds."""

import copy

import pytest
import torch
from peft import PeftModel

import loraga
from loraga.layers import lora_layers
from loraga.loss import loss_terms
from tests import models
from tests.test_passes import assert_same_state, state_of

NAMES = list(models.ARCHITECTURES)
FEW = "ignore:.*singular directions:UserWarning"


def started(name, data, **settings):
    base = models.build(name)
    model = models.with_lora(base, name, lora_dropout=0.1, **settings)
    return model, loraga.initialize(model, data, progress=False)


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("name", NAMES)
def test_the_function_is_kept_bit_for_bit(name):
    data = models.batches(name)
    reference = models.build(name)
    model, report = started(name, data)
    assert report.function_change == 0
    for mode in (False, True):
        reference.train(mode), model.train(mode)
        torch.manual_seed(5)
        expected = models.logits(reference, data[0])
        torch.manual_seed(5)
        with model.disable_adapter():  # no draw for the adapter's own dropout
            assert torch.equal(models.logits(model, data[0]), expected)
    model.eval()
    assert torch.equal(models.logits(model, data[0]), models.logits(reference.eval(), data[0]))
    for layer in lora_layers(model, "default").values():  # train mode for the adapter alone: its dropout is drawn
        layer.lora_dropout.train()
    assert torch.equal(models.logits(model, data[0]), models.logits(reference, data[0]))


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_loads_with_plain_peft_onto_the_original_base(name, tmp_path):
    data = models.batches(name)
    model, _ = started(name, data)
    model.eval()
    models.train(model, data)
    trained = models.logits(model, data[0])
    assert models.relative_difference(trained, models.logits(models.build(name), data[0])) > 1e-2
    with model.disable_adapter():
        assert torch.equal(models.logits(model, data[0]), models.logits(models.build(name), data[0]))
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(models.build(name), tmp_path).eval()
    assert models.relative_difference(models.logits(plain, data[0]), trained) < 1e-5
    again = loraga.load(models.build(name), tmp_path, is_trainable=True).eval()
    assert torch.equal(models.logits(again, data[0]), trained)
    merged = copy.deepcopy(model).merge_and_unload().eval()
    assert models.relative_difference(models.logits(merged, data[0]), trained) < 1e-5


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_adapter_is_changed(name):
    model = models.with_lora(models.build(name), name, lora_dropout=0.1)
    model.train()
    before = state_of(model)
    loraga.initialize(model, models.batches(name), progress=False)
    after = state_of(model)
    started_from = {key: value for key, value in after[0].items() if "lora_" in key}
    assert any(not torch.equal(before[0][key][2], value[2]) for key, value in started_from.items())
    kept = ({**after[0], **{key: before[0][key] for key in started_from}}, *after[1:])
    assert all(after[0][key][0] == before[0][key][0] for key in started_from)  # requires_grad
    buffers = {key: value for key, value in after[1].items() if "lora_offset" not in key}
    modules = {key: value for key, value in after[2].items() if "lora_offset" not in key}
    assert_same_state(before, (kept[0], buffers, modules, *kept[3:]))


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_start_does_not_depend_on_the_losss_magnitude(name, scale):
    """The first step's operator G A^T A + B B^T G, relative to G."""
    data = models.batches(name)
    base = models.build(name)
    gradients = models.autograd_gradients(base, data, [loss_terms(base, batch) for batch in data])
    operators = []
    for factor in (1.0, scale):
        model = models.with_lora(models.build(name), name)
        loraga.initialize(
            model, data, loss=lambda m, b, factor=factor: factor * m(**b).loss, progress=False, check=False
        )
        operators.append(
            {
                layer: (
                    gradients[layer].double() @ module.lora_A["default"].weight.double().T,
                    module.lora_A["default"].weight.double(),
                    module.lora_B["default"].weight.double(),
                )
                for layer, module in lora_layers(model, "default").items()
            }
        )
    for layer, (GA, A, B) in operators[0].items():
        G = gradients[layer].double()
        other_GA, other_A, other_B = operators[1][layer]
        first, second = GA @ A + B @ (B.T @ G), other_GA @ other_A + other_B @ (other_B.T @ G)
        assert models.relative_difference(second, first) < 1e-3, layer
