import copy

import pytest
import torch

from loraga.lab.encoding import batches
from loraga.lab.methods import METHODS, Adapter
from loraga.lab.task import Item

ITEMS = [Item(f"{n} + {n} =", str(2 * n)) for n in range(16)]
ADAPTER = Adapter(rank=4, alpha=8, gamma=256.0)


@pytest.fixture
def ready(tokenizer):
    return batches(tokenizer, ITEMS, size=4)


def factors(peft_model):
    return {name: weight for name, weight in peft_model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(("method", "scaling"), [("lora", 8 / 4), ("lora_ga", 8 / 4**0.5)])
def test_all_linear_layers_but_the_head_get_the_methods_scaling(method, scaling, ready, model):
    started = METHODS[method].start(model, ready, ADAPTER, 0).model
    layers = {name: module for name, module in started.named_modules() if hasattr(module, "lora_A")}

    assert len(layers) == 2 * 7
    assert not [name for name in layers if "lm_head" in name]
    assert {module.scaling["default"] for module in layers.values()} == {scaling}


@pytest.mark.parametrize("method", METHODS)
def test_start_keeps_the_models_function(method, ready, model):
    with torch.no_grad():
        before = model(**ready[0]).logits
        after = METHODS[method].start(model, ready, ADAPTER, 0).model.eval()(**ready[0]).logits

    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)


def test_lora_ga_starts_from_the_batches_gradient_and_lora_does_not(ready, model):
    lora_ga = METHODS["lora_ga"].start(model, ready, ADAPTER, 0)

    assert lora_ga.summary["cosine"] > 0.5
    assert lora_ga.summary["loss_terms"] == sum(int((batch["labels"] != -100).sum()) for batch in ready)
    assert all(weight.norm() > 0 for name, weight in factors(lora_ga.model).items() if "lora_B" in name)


def test_seed_decides_loras_start_and_the_global_random_state_is_left_alone(ready, model):
    state = torch.get_rng_state()
    starts = [factors(METHODS["lora"].start(copy.deepcopy(model), ready, ADAPTER, seed).model) for seed in (0, 0, 1)]

    name = next(name for name in starts[0] if "lora_A" in name)
    assert torch.equal(starts[0][name], starts[1][name])
    assert not torch.equal(starts[0][name], starts[2][name])
    assert torch.equal(state, torch.get_rng_state())
