import math
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import loraga
from loraga.lab.base_model import BaseModel
from loraga.lab.examples import Collator, encode_all
from loraga.lab.methods import METHODS
from loraga.lab.prompts import make_prompted
from loraga.lab.starts import continued, start, with_adapter
from tests.integration.common import adapter_state, assert_moved, assert_same, eval_logits

from .conftest import ROWS, byte_tokenizer

# As the papers have them: whether eta is alpha / sqrt(r), and the scheme of loraga.initialize.
TRUE, FALSE = ("rslora", "lora_ga", "stable_output"), ("lora", "lora_plus", "gaussian", "gradient")
RSLORA = dict.fromkeys(TRUE, True) | dict.fromkeys(FALSE, False)
SCHEMES = {"lora_ga": "lora_ga", "gaussian": "gaussian", "stable_output": "stable_output", "gradient": "gradient"}
ALPHA, RANK, SEED = 12, 4, 3


@pytest.fixture
def batches(recipe):
    """Ten micro-batches: more than loraga.initialize takes unless it is told to take all."""
    made = make_prompted(ROWS[:20], recipe(), byte_tokenizer(), "rows.jsonl")
    examples = encode_all(byte_tokenizer(), made, recipe(), "rows.jsonl").examples
    collate = Collator(257, is_encoder_decoder=False, keeps_logits=True)
    return [collate(examples[at : at + 2]) for at in range(0, 20, 2)]


@pytest.fixture
def asked(recipe):
    def make(method, **keys):
        return recipe(method=method, rank=RANK, alpha=ALPHA, seed=SEED, **keys)

    return make


def fresh(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def of_peft(folder, method, dropout=0.0):
    """PEFT's own adapter after a plain manual_seed."""
    torch.manual_seed(SEED)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=dropout,
        use_rslora=RSLORA[method],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(fresh(folder), config)


def probe():
    return {"input_ids": torch.arange(40, 72).reshape(2, 16)}


def test_every_method_that_is_not_started_by_peft_in_its_own_way_is_tested_here():
    assert {name for name, method in METHODS.items() if method.peft == "lora"} == {*RSLORA, "mirrored", "full"}


@pytest.mark.parametrize("method", sorted(set(RSLORA) - set(SCHEMES)))
def test_a_method_without_a_scheme_is_pefts_own_adapter_bit_for_bit(tiny_folder, asked, batches, method):
    expected = adapter_state(of_peft(tiny_folder, method))

    started = start(fresh(tiny_folder), asked(method), batches)

    assert_same(adapter_state(started.model), expected)
    assert started.report is None
    assert torch.equal(eval_logits(started.model, probe()), eval_logits(fresh(tiny_folder), probe()))


@pytest.mark.parametrize("method", SCHEMES)
def test_a_method_with_a_scheme_is_what_initialize_makes_bit_for_bit(tiny_folder, asked, batches, method):
    reference = of_peft(tiny_folder, method)
    untrained = adapter_state(reference)
    report = loraga.initialize(
        reference, batches, scheme=SCHEMES[method], gamma=25, num_batches=None, seed=SEED, progress=False
    )

    started = start(fresh(tiny_folder), asked(method, gamma=25.0), batches)

    assert_same(adapter_state(started.model), adapter_state(reference))
    assert started.report.scheme == SCHEMES[method]
    assert started.report.loss_terms == report.loss_terms
    assert torch.equal(eval_logits(started.model, probe()), eval_logits(fresh(tiny_folder), probe()))
    factors = {key: value for key, value in adapter_state(reference).items() if key in untrained}
    assert_moved(factors, untrained)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_mirrored_start_is_lora_gas_twice_with_both_signs_all_of_it_trained(tiny_folder, asked, batches, dropout):
    lora_ga = adapter_state(start(fresh(tiny_folder), asked("lora_ga", gamma=25.0), batches).model)
    before = torch.random.get_rng_state()

    started = start(fresh(tiny_folder), asked("mirrored", gamma=25.0, dropout=dropout), batches)

    assert torch.equal(torch.random.get_rng_state(), before)
    state = adapter_state(started.model)
    assert state.keys() == {key for key in lora_ga if "lora_offset" not in key}
    for key, tensor in state.items():
        half = lora_ga[key]
        halves = torch.cat([half, half]) if "lora_A" in key else torch.cat([half, -half], dim=1)
        assert torch.equal(tensor, halves)
    trained = {name.split(".")[-3] for name, weight in started.model.named_parameters() if weight.requires_grad}
    assert trained == {"lora_A", "lora_B"}
    layers = [module for module in started.model.modules() if hasattr(module, "lora_A")]
    assert [layer.scaling["default"] for layer in layers] == pytest.approx([ALPHA / math.sqrt(RANK)] * 2 * 7)
    assert started.model.peft_config["default"].lora_dropout == dropout
    assert (started.report.scheme, started.report.offset) == ("lora_ga", "mirrored")
    assert "lora_ga, offset=mirrored, gamma=25" in started.report.summary()
    assert f"saved as a plain LoRA of rank {2 * RANK} (all of it trained)" in str(started.report)
    expected = eval_logits(fresh(tiny_folder), probe())
    torch.testing.assert_close(eval_logits(started.model, probe()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", RSLORA)
def test_every_layer_but_the_output_has_the_methods_rank_and_scaling(tiny_folder, asked, batches, method):
    model = start(fresh(tiny_folder), asked(method), batches).model

    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    eta = ALPHA / math.sqrt(RANK) if RSLORA[method] else ALPHA / RANK
    assert len(layers) == 2 * 7
    assert {layer.scaling["default"] for layer in layers} == {eta}
    assert {layer.lora_A["default"].weight.shape[0] for layer in layers} == {RANK}
    trained = {name.split(".")[-3] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"lora_A", "lora_B"}


def test_full_fine_tuning_trains_all_parameters_without_an_adapter(tiny_folder, asked, batches):
    model = fresh(tiny_folder).requires_grad_(False)

    started = start(model, asked("full"), batches)

    assert started.model is model
    assert not isinstance(started.model, PeftModel)
    assert all(weight.requires_grad for weight in model.parameters())
    assert started.report is None


@pytest.mark.parametrize("keys", [{"offset": "none"}, {"offset": "weights"}, {"stability": "backward"}], ids=str)
def test_offset_and_stability_go_to_initialize(tiny_folder, asked, batches, keys):
    reference = of_peft(tiny_folder, "lora_ga")
    loraga.initialize(reference, batches, num_batches=None, seed=SEED, progress=False, **keys)

    model = start(fresh(tiny_folder), asked("lora_ga", **keys), batches).model

    assert_same(dict(model.state_dict()), dict(reference.state_dict()))
    assert_moved(adapter_state(model), adapter_state(start(fresh(tiny_folder), asked("gradient"), batches).model))


def test_dropout_and_target_modules_are_the_recipes(tiny_folder, asked):
    model = with_adapter(fresh(tiny_folder), asked("lora", dropout=0.25, target_modules=["q_proj", "up_proj"]))

    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "up_proj"}
    assert {module.lora_dropout["default"].p for module in layers.values()} == {0.25}


@pytest.mark.parametrize("method", [*RSLORA, "mirrored", "full"])
def test_global_random_states_stay_and_do_not_matter(tiny_folder, asked, batches, method):
    states = []
    for seed in (1, 2):
        model = fresh(tiny_folder)
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)  # noqa: NPY002
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
        states.append(start(model, asked(method), batches).model.state_dict())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002

    assert_same(dict(states[0]), dict(states[1]))


@pytest.mark.parametrize("method", sorted(set(RSLORA) - {"stable_output"}))
def test_another_seed_is_another_start(tiny_folder, recipe, batches, method):
    one, other = (start(fresh(tiny_folder), recipe(method=method, seed=seed), batches).model for seed in (0, 1))

    assert_moved(adapter_state(one), adapter_state(other))


@pytest.mark.parametrize("method", ["lora_ga", "gradient"])
def test_a_start_from_a_gradients_file_is_that_from_the_batches(tiny_folder, asked, batches, tmp_path, method):
    file = tmp_path / "gradients.safetensors"
    gradients = loraga.estimate_gradients(
        of_peft(tiny_folder, method), batches, RANK, num_batches=None, seed=SEED, progress=False
    )
    loraga.save_gradients(gradients, file)
    expected = start(fresh(tiny_folder), asked(method), batches)

    from_file = start(fresh(tiny_folder), asked(method, gradients=str(file)), batches[:1])

    assert_same(adapter_state(from_file.model), adapter_state(expected.model))
    assert from_file.report.estimator == "given"
    elsewhere = start(fresh(tiny_folder), asked(method), batches[:1])
    assert_moved(adapter_state(elsewhere.model), adapter_state(expected.model))


# --- going on from a kept start


@pytest.mark.parametrize("method", RSLORA)
def test_a_continued_start_is_the_started_model_bit_for_bit(tiny_folder, asked, batches, tmp_path, method):
    started = start(fresh(tiny_folder), asked(method), batches).model
    started.save_pretrained(str(tmp_path / "start"))

    again = continued(fresh(tiny_folder), asked(method), tmp_path / "start")

    assert_same(adapter_state(again), adapter_state(started))
    assert any("lora_offset" in key for key in adapter_state(again)) == (method in SCHEMES)
    assert [name for name, weight in again.named_parameters() if weight.requires_grad] == [
        name for name, weight in started.named_parameters() if weight.requires_grad
    ]
    assert_same(gradients_after_a_step(again, batches), gradients_after_a_step(started, batches))
    assert torch.equal(eval_logits(again, probe()), eval_logits(started, probe()))


def gradients_after_a_step(model, batches):
    """The gradients of a second step, which see the offset, the scaling and both factors."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.SGD(weights.values(), lr=0.01)
    model(**batches[0]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model(**batches[1]).loss.backward()
    return {name: weight.grad for name, weight in weights.items()}


def test_full_fine_tuning_goes_on_with_all_parameters(tiny_folder, asked, tmp_path):
    model = continued(fresh(tiny_folder).requires_grad_(False), asked("full"), tmp_path / "nothing")

    assert all(weight.requires_grad for weight in model.parameters())


# --- what the adapter says of itself


def test_an_adapter_names_its_base_model_so_that_plain_peft_finds_it(tiny_folder, asked, batches, tmp_path):
    start(fresh(tiny_folder), asked("lora_ga"), batches).model.save_pretrained(str(tmp_path))

    config = LoraConfig.from_pretrained(str(tmp_path))

    assert config.base_model_name_or_path == str(tiny_folder)
    assert config.task_type == "CAUSAL_LM"


def test_an_encoder_decoder_gets_an_adapter_of_its_own_task(tiny_t5_folder, recipe):
    made = make_prompted(ROWS[:12], recipe(), byte_tokenizer(), "rows.jsonl")
    examples = encode_all(byte_tokenizer(), made, recipe(), "rows.jsonl", is_encoder_decoder=True).examples
    batch = Collator(257, is_encoder_decoder=True, keeps_logits=False)(examples)
    asked = recipe(model=str(tiny_t5_folder), method="lora_ga", rank=2)
    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5_folder).eval()
    expected = eval_logits(base, batch)

    started = start(BaseModel.of(asked).load(), asked, [batch])

    assert started.model.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    assert torch.equal(eval_logits(started.model, batch), expected)
    assert started.report.loss_terms == sum(len(each.labels) for each in examples)
