"""Every kind of quantised base that runs on this machine: the start, the gradient, and what stays as it was.

Train and eval mode use different kernels for 8-bit weights of bitsandbytes everywhere, and for its 4-bit ones on
processors with AVX512-BF16, whose eval kernel repacks the weight in place. The function is kept bit for bit within each
mode.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import loraga
from loraga.layers import lora_layers
from loraga.offset import offset_of
from loraga.quantization import is_quantized
from tests.integration.common import eval_logits, train_logits
from tests.models import autograd_gradients, batches, relative_difference, train
from tests.quantised import base_bytes, dequantised, linear_layers, with_lora

LAYERS = 14


def test_every_linear_layer_is_quantised_and_the_bytes_are_seen(quantised):
    model = quantised()
    layers = linear_layers(model)
    assert len(layers) == LAYERS
    assert all(is_quantized(layer) for layer in layers.values())
    seen = base_bytes(model)
    stored = sum(len(content) for name, content in seen.items() if name.rpartition(".")[0] and "_proj" in name)
    assert stored > 73728 / 2  # four bits a weight at least
    assert base_bytes(quantised()) == seen


def test_the_start_keeps_the_function_in_train_mode_and_in_eval_mode(quantised):
    in_training = train_logits(quantised())
    model = with_lora(quantised(), lora_dropout=0.1)
    report = loraga.initialize(model, batches("Llama"), progress=False)
    assert report.function_change == 0
    assert min(layer.cosine for layer in report.layers.values()) > 0.5
    assert min(layer.offset_norm for layer in report.layers.values()) > 1e-3
    assert torch.equal(train_logits(model), in_training)
    with model.disable_adapter():
        assert torch.equal(train_logits(model), in_training)
    in_eval = eval_logits(quantised())
    assert torch.equal(eval_logits(model), in_eval)
    with model.disable_adapter():
        assert torch.equal(eval_logits(model), in_eval)


@pytest.mark.parametrize("estimator", ["streaming", "exact"])
def test_the_gradient_is_that_of_the_dequantised_weights(kind, quantised, estimator):
    """By plain autograd on a float model with those weights; both compute in float32, in another order."""
    model, data = quantised(), batches("Llama", 2)
    reference = autograd_gradients(dequantised(model, kind), data, [terms(batch) for batch in data])
    found = loraga.estimate_gradients(model, data, 16, estimator=estimator, progress=False)
    assert len(found) == LAYERS
    for name, gradient in found.items():
        rebuilt = gradient.U * gradient.S @ gradient.Vh  # at rank 16 all singular triplets that a layer has are kept
        assert relative_difference(rebuilt, reference[name]) < 1e-5, name


def test_a_weight_is_dequantised_only_where_its_layer_does_so_in_training_too(kind, quantised):
    model = with_lora(quantised())
    shapes = {(layer.out_features, layer.in_features) for layer in linear_layers(model).values()}
    with LiveMatrices(shapes) as training:
        model.train()(**batches("Llama")[0]).loss.backward()
    with LiveMatrices(shapes) as matrices:
        loraga.initialize(model, batches("Llama"), progress=False)
    assert matrices.made >= LAYERS  # it does see what a layer makes of its weight
    assert matrices.most_at_once <= training.most_at_once + 1  # the one whose norm is reported
    if not kind.keeps_copies:
        assert matrices.most_at_once < LAYERS / 2


def test_whatever_is_done_no_byte_of_the_base_changes(quantised, tmp_path):
    base = quantised()
    train_logits(base)  # the first forward of an 8-bit layer moves its scales
    before = base_bytes(base)
    loraga.estimate_gradients(base, batches("Llama"), 2, progress=False)
    assert base_bytes(base) == before
    model = with_lora(base, lora_dropout=0.1)
    loraga.initialize(model, batches("Llama"), progress=False)
    assert base_bytes(model) == before
    loraga.suggest_learning_rate(model, batches("Llama"), progress=False)
    assert base_bytes(model) == before
    start = train_logits(model)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        train(model, batches("Llama"), 3)
    assert relative_difference(train_logits(model), start) > 1e-3
    assert base_bytes(model) == before
    model.save_pretrained(str(tmp_path / "saved"))
    loraga.export(model, tmp_path / "exported", rank=2)
    model.load_adapter(str(tmp_path / "saved"), "default", is_trainable=True)
    assert base_bytes(model) == before
    eval_logits(model)
    evaluated = base_bytes(model)  # what an evaluation of the base alone leaves: bitsandbytes may repack its weights
    alone = quantised()
    eval_logits(alone)
    assert evaluated == base_bytes(alone)
    model.save_pretrained(str(tmp_path / "saved"))
    loraga.export(model, tmp_path / "exported", rank=2)
    assert base_bytes(model) == evaluated


def test_the_start_does_not_depend_on_the_losss_magnitude(quantised):
    operators = {}
    for scale in (1e-3, 1.0, 1e3):
        model = with_lora(quantised())
        data = batches("Llama")
        gradients = loraga.estimate_gradients(model, data, 2, progress=False)
        loraga.initialize(
            model, data, loss=lambda m, batch, scale=scale: scale * m(**batch).loss, weight=terms, progress=False
        )
        operators[scale] = first_steps(model, gradients)
    for scale in (1e-3, 1e3):
        for layer, operator in operators[1.0].items():
            assert relative_difference(operators[scale][layer], operator) < 1e-3, (scale, layer)


def test_estimating_leaves_no_trace(quantised):
    model = with_lora(quantised(), lora_dropout=0.1)
    model.train()
    next(parameter for parameter in model.parameters() if parameter.requires_grad).grad = torch.ones(2, 64)
    before = traces(model)
    loraga.estimate_gradients(model, batches("Llama"), 2, progress=False)
    assert traces(model) == before
    with pytest.raises(loraga.BatchError, match="batch 0: the loss is nan"):
        loraga.estimate_gradients(
            model, batches("Llama"), 2, loss=lambda m, batch: m(**batch).loss * torch.nan, weight=terms, progress=False
        )
    assert traces(model) == before


def test_folding_into_a_quantised_weight_is_refused(quantised):
    model = with_lora(quantised())
    with pytest.raises(loraga.OffsetError, match="quantised"):
        loraga.initialize(model, batches("Llama"), offset="weights", progress=False)


def test_without_an_offset_the_base_stays_and_the_change_is_measured(quantised):
    base = quantised()
    train_logits(base)
    before, in_training = base_bytes(base), train_logits(base)
    model = with_lora(base)
    report = loraga.initialize(model, batches("Llama"), offset="none", progress=False)
    assert 0 < report.function_change < 1e-2
    assert base_bytes(model) == before
    assert 0 < relative_difference(train_logits(model), in_training) < 1e-2
    with model.disable_adapter():
        assert torch.equal(train_logits(model), in_training)


def terms(batch):
    return float((batch["labels"][..., 1:] != -100).sum())


def first_steps(model, gradients):
    """G A^T A + B B^T G of each layer, scaled to G."""
    found = {}
    for name, layer in lora_layers(model, "default").items():
        start, gradient = offset_of(layer, "default"), gradients[name]
        G = gradient.U * gradient.S @ gradient.Vh
        found[name] = (G @ start.A.T @ start.A + start.B @ start.B.T @ G) / G.norm()
    return found


def traces(model):
    """All that a pass could leave behind, by value."""
    return {
        "bytes": base_bytes(model),
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "cache": model.config.use_cache,
        "dropout": [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)],
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
    }


class LiveMatrices(TorchDispatchMode):
    """Counts the float tensors of some shapes that operations make, and how many of them are alive at once."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes
        self.made, self.most_at_once = 0, 0
        self.alive = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if type(tensor) is torch.Tensor and tensor.is_floating_point() and tuple(tensor.shape) in self.shapes:
                self.made += 1
                self.alive = {key: storage for key, storage in self.alive.items() if not storage.expired()}
                self.alive[tensor.untyped_storage().data_ptr()] = StorageWeakRef(tensor.untyped_storage())
                self.most_at_once = max(self.most_at_once, len(self.alive))
        return result
