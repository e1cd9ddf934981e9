import random
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loraga import suggest_learning_rate
from loraga.lab.base_model import BaseModel
from loraga.lab.errors import SettingsError
from loraga.lab.methods import METHODS
from loraga.lab.own_training import own_training
from loraga.lab.peft_starts import STARTS
from loraga.lab.run_folder import TRAINED, folder_of
from loraga.lab.starts import load_base, trainable_parameters
from tests.integration.common import adapter_state, assert_moved, assert_same, eval_logits

from .conftest import Told, saved, tiny_model
from .runs import carried_out, data_of, killed, started, trained

OWN = [name for name, method in METHODS.items() if method.peft != "lora"]
DATA_DRIVEN = [name for name in OWN if METHODS[name].uses_data]
RANDOM = ["dora", "adalora"]
ALPHA, RANK = 12, 4
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(params=["llama", "t5"])
def side(request, tiny_folder, tiny_t5_folder):
    """The folder of a decoder, and of an encoder-decoder."""
    return {"llama": tiny_folder, "t5": tiny_t5_folder}[request.param]


@pytest.fixture
def asked(recipe, tmp_path):
    def make(method, **keys):
        training = {"learning_rate": 0.01, "max_steps": 6, "save_steps": 2.0, "output_dir": str(tmp_path / method)}
        # from one batch EVA's components stand still at once
        batches = {"gradient_batches": 1 if method == "eva" else 2} if METHODS[method].uses_batches else {}
        return recipe(**{"method": method, "rank": RANK, "alpha": ALPHA, "seed": 3, **training, **batches, **keys})

    return make


def layers_of(model):
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def product(layer):
    """eta B A, (d_out, d_in)."""
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return (layer.scaling["default"] * B.double() @ A.double()).detach()


def weights_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name.removesuffix(".weight"): value.detach() for name, value in model.named_parameters()}


# --- every start


def test_every_method_names_a_start():
    assert {method.peft for method in METHODS.values()} == set(STARTS)


@pytest.mark.parametrize("method", OWN)
def test_a_start_keeps_the_function_and_is_drawn_by_the_seed_alone(side, asked, method):
    recipe = asked(method, model=str(side))
    base = BaseModel.of(recipe).load()
    batch = data_of(recipe, base).micro_batches(recipe, 0, 1)[0]
    expected, states = eval_logits(base, batch), []
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)  # noqa: NPY002
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
        model = started(recipe).model
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002
        states.append(dict(model.state_dict()))

    assert_same(*states)
    torch.testing.assert_close(eval_logits(model, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", RANDOM)
def test_another_seed_is_another_start(asked, method):
    one, other = (adapter_state(started(asked(method, seed=seed)).model) for seed in (0, 1))

    assert not torch.equal(*(next(value for key, value in each.items() if "lora_A" in key) for each in (one, other)))


@pytest.mark.parametrize("method", DATA_DRIVEN)
def test_other_batches_are_another_start(asked, method):
    sizes = (12, 16)
    one, other = (
        adapter_state(started(asked(method, gradient_batches=1, per_device_train_batch_size=size)).model)
        for size in sizes
    )

    assert one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one if "lora_A" in key)


@pytest.mark.parametrize("method", [*OWN, "lora_plus"])
def test_what_was_trained_and_saved_is_its_function_in_plain_peft_on_the_original_base(side, asked, tmp_path, method):
    recipe = asked(method, model=str(side), dropout=0.1)
    model = started(recipe).model
    batch = data_of(recipe, model).micro_batches(recipe, 0, 1)[0]
    before = eval_logits(model, batch)

    trained(recipe, model)
    own_training(recipe).save(model, tmp_path / "adapter")

    loaded = PeftModel.from_pretrained(BaseModel.of(recipe).load(), str(tmp_path / "adapter"))
    expected = eval_logits(model, batch)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(eval_logits(loaded, batch), expected, rtol=0, atol=1e-5)
    assert loaded.peft_config["default"].init_lora_weights in (True, "eva")


@pytest.mark.parametrize("method", [*OWN, "lora_plus"])
def test_a_run_that_was_killed_and_continued_ends_with_the_same_files(asked, tmp_path, method):
    whole, again = (
        asked(method, output_dir=str(tmp_path / name), dropout=0.1, per_device_train_batch_size=4)
        for name in ("whole", "again")
    )
    expected, told = carried_out(whole), Told()
    killed(again, 5)

    found = carried_out(again, told)

    assert told.begun[0] == ("training", 6, 4)
    files = [tmp_path / name / "adapter" / WEIGHTS for name in ("whole", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (found["train_loss"], found["held_out"]) == (expected["train_loss"], None)
    counts = {each["trainable_parameters"] for each in (found, expected, folder_of(again).read_json(TRAINED))}
    assert len(counts) == 1
    assert counts.pop() > 0


@pytest.mark.parametrize("method", [name for name in OWN if not METHODS[name].no_auto])
def test_a_learning_rate_is_suggested_for_each_start(asked, method):
    recipe = asked(method)
    base = BaseModel.of(recipe).load()
    batches = data_of(recipe, base).micro_batches(recipe, 2, 2)

    rate = suggest_learning_rate(started(recipe, base).model, batches, progress=False)

    assert 1e-4 < rate.value < 1
    assert rate.loss_at_value < rate.loss_before


@pytest.mark.parametrize("method", OWN)
def test_layers_that_are_not_there_are_refused(asked, method):
    with pytest.raises(SettingsError, match=r"no adapter can be put on the model; look at target_modules"):
        started(asked(method, target_modules=["no_such_layer"]))


@pytest.mark.parametrize("method", ["dora", "eva"])  # AdaLoRA's has its own test; the others are plain LoRA of one rank
def test_what_a_run_evaluates_is_what_was_trained(asked, method):
    recipe = asked(method, held_out_rows=4, max_steps=4, trainer={"eval_strategy": "steps", "eval_steps": 4})

    metrics = carried_out(recipe)

    (evaluated,) = [line["eval_loss"] for line in folder_of(recipe).log() if "eval_loss" in line]
    assert evaluated == pytest.approx(metrics["held_out"]["loss"], rel=1e-5)


# --- parameter counts


def test_trainable_parameters_are_counted(tiny_folder, asked):
    shapes = [tuple(value.shape) for name, value in weights_of(tiny_folder).items() if "_proj" in name]
    counts = {
        "lora": sum(RANK * (d_out + d_in) for d_out, d_in in shapes),
        "dora": sum(RANK * (d_out + d_in) + d_out for d_out, d_in in shapes),
        "pissa": sum(RANK * (d_out + d_in) for d_out, d_in in shapes),
        "peft_lora_ga": sum(RANK * (d_out + d_in) for d_out, d_in in shapes),
        "adalora": sum(6 * (d_out + d_in + 1) for d_out, d_in in shapes),  # 1.5 times the rank
        "full": sum(value.numel() for value in tiny_model().parameters()),
    }

    for method, count in counts.items():
        assert trainable_parameters(started(asked(method)).model) == count, method


# --- each start against its paper


def test_pissa_starts_at_the_principal_singular_triplets_of_the_weight(tiny_folder, asked):
    model = started(asked("pissa")).model
    weights = weights_of(tiny_folder)

    assert len(layers_of(model)) == 14
    for name, layer in layers_of(model).items():
        U, S, Vh = torch.linalg.svd(weights[name].double(), full_matrices=False)
        principal = (U[:, :RANK] * S[:RANK]) @ Vh[:RANK]
        torch.testing.assert_close(product(layer), principal, rtol=0, atol=1e-5)
        residual = weights[name].double() - principal
        torch.testing.assert_close(layer.base_layer.weight.double(), residual, rtol=0, atol=1e-5)
        A, B = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        roots = torch.diag(S[:RANK] / layer.scaling["default"])  # A and B share the singular values
        torch.testing.assert_close(A @ A.T, roots, rtol=0, atol=1e-5)
        torch.testing.assert_close(B.T @ B, roots, rtol=0, atol=1e-5)


def test_pefts_lora_ga_is_what_peft_makes_by_hand(tiny_folder, asked):
    recipe = asked("peft_lora_ga")
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    names = [name for name, module in base.named_modules() if "_proj" in name and hasattr(module, "weight")]
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=names,
        task_type="CAUSAL_LM",
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    )
    batches = data_of(recipe, base).micro_batches(recipe, 0, 2)
    torch.manual_seed(recipe.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        preprocess_loraga(base, config, lambda: [base(**batch).loss.backward() for batch in batches])
    expected = get_peft_model(base, config)

    model = started(recipe).model

    assert len(names) == 14
    own = {key: value for key, value in model.state_dict().items() if "lora_offset" not in key}
    assert_same(own, dict(expected.state_dict()))
    assert_moved(
        {name: layer.base_layer.weight for name, layer in layers_of(model).items()},
        {name: value for name, value in weights_of(tiny_folder).items() if name in names},
    )


def inputs_of(model, batch):
    """{layer: its inputs at the positions that have a label}, by hooks of our own."""
    found, missing = {}, batch["input_ids"].shape[1] - batch["labels"].shape[1]
    mask = torch.nn.functional.pad(batch["labels"], (missing, 0), value=-100) != -100
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0][mask].double()}))
        for name, module in model.named_modules()
        if "_proj" in name
    ]
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    return found


def test_eva_starts_at_the_principal_components_of_the_inputs(tiny_folder, asked):
    recipe = asked("eva", per_device_train_batch_size=24)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    batch = data_of(recipe, base).micro_batches(recipe, 0, 1)[0]
    inputs = inputs_of(base, batch)

    model = started(recipe).model

    ranks, shares = {}, []
    for name, layer in layers_of(model).items():
        centred = inputs[name] - inputs[name].mean(dim=0)
        _, S, Vh = torch.linalg.svd(centred, full_matrices=False)
        A = layer.lora_A["default"].weight.double()
        ranks[name] = len(A)
        cosines = (A * Vh[: len(A)]).sum(dim=1).abs()
        torch.testing.assert_close(cosines, torch.ones(len(A)).double(), rtol=0, atol=1e-3)
        assert not layer.lora_B["default"].weight.any()
        assert layer.scaling["default"] == pytest.approx(ALPHA / RANK)  # whatever its own rank
        shares += [(float(share), name) for share in S[: 2 * RANK].square() / S.square().sum()]  # no layer gets more
    assert sum(ranks.values()) == RANK * 14
    assert len(set(ranks.values())) > 1
    best = [name for _, name in sorted(shares, reverse=True)[: RANK * 14]]
    by_share = {name: best.count(name) for name in inputs}
    assert sorted(by_share.values()) == sorted(ranks.values())


def test_dora_is_pefts_with_the_weights_norms_as_magnitudes(tiny_folder, asked):
    model, weights = started(asked("dora")).model, weights_of(tiny_folder)

    for name, layer in layers_of(model).items():
        magnitude = layer.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(magnitude, torch.linalg.vector_norm(weights[name], dim=1))
        assert magnitude.requires_grad


# --- bases that cannot be changed


@pytest.mark.parametrize("method", ["pissa", "peft_lora_ga"])
def test_a_half_precision_base_is_refused_since_the_start_would_be_rounded_away(asked, tmp_path, method):
    half = saved(tiny_model().to(torch.bfloat16), tmp_path / "half")

    with pytest.raises(SettingsError, match=r"is torch.bfloat16, which rounds away .*; write dtype: float32"):
        started(asked(method, model=str(half), dtype="auto"))

    assert started(asked(method, model=str(half))).seconds > 0


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter")
def test_a_tied_weight_is_refused_since_the_start_would_change_the_embeddings(asked, tmp_path):
    model = tiny_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    folder = saved(model, tmp_path / "tied")

    with pytest.raises(SettingsError, match=r"lm_head: its weight is tied .*; leave it out of target_modules"):
        started(asked("pissa", model=str(folder), target_modules=["q_proj", "lm_head"]))


@pytest.mark.parametrize("method", ["pissa", "peft_lora_ga"])
def test_a_rank_above_the_layers_is_refused(asked, method):
    with pytest.raises(SettingsError, match=r"too few singular values; lower rank 40|look at target_modules and rank"):
        started(asked(method, rank=40))


def test_a_layer_from_whose_weight_nothing_is_subtracted_stays_plain_lora(tiny_folder, asked, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    torch.nn.init.zeros_(base.model.layers[0].self_attn.q_proj.weight)

    started(asked("pissa"), base).model.save_pretrained(str(tmp_path / "start"))

    ranks = {key: len(value) for key, value in load_file(tmp_path / "start" / WEIGHTS).items() if "lora_A" in key}
    assert {rank for key, rank in ranks.items() if "layers.0.self_attn.q_proj" in key} == {RANK}
    assert {rank for key, rank in ranks.items() if "layers.0.self_attn.q_proj" not in key} == {2 * RANK}


def test_checkpointing_changes_no_start(asked):
    plain, again = (
        adapter_state(started(recipe, load_base(recipe)).model)
        for recipe in (asked("peft_lora_ga"), asked("peft_lora_ga", gradient_checkpointing=True))
    )

    assert_same(plain, again)
