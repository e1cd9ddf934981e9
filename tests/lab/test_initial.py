import io

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import loraga
from loraga.lab.base_model import BaseModel
from loraga.lab.errors import DataError, SettingsError
from loraga.lab.initial import estimate, init
from loraga.lab.methods import METHODS
from loraga.lab.preparation import prepare
from loraga.lab.starts import start
from tests.integration.common import adapter_state, assert_moved, assert_same, eval_logits
from tests.models import autograd_gradients, relative_difference

ADAPTERS = [name for name, method in METHODS.items() if method.adapter]
PROBE = {"input_ids": torch.arange(40, 88).reshape(2, 24)}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def fresh(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def batches_of(recipe):
    data = prepare(recipe, Console(file=io.StringIO())).data_for(BaseModel.of(recipe).load())
    return data.micro_batches(recipe, 0, recipe.gradient_batches)


def plain_batch(batch):
    """The batch without logits_to_keep: labels for all columns."""
    missing = batch["input_ids"].shape[1] - batch["labels"].shape[1]
    labels = torch.nn.functional.pad(batch["labels"], (missing, 0), value=-100)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_untrained_adapter_on_the_disk_is_the_base_models_function_in_plain_peft(
    recipe, console, tiny_folder, tmp_path, method
):
    facts = init(recipe(method=method), tmp_path / "adapter", console)

    base = fresh(tiny_folder)
    expected = eval_logits(base, PROBE)
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert relative_difference(eval_logits(model, PROBE), expected) <= 1e-5
    assert (facts["adapter"], facts["method"]) == (str(tmp_path / "adapter"), method)
    assert facts["seconds"] > 0


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_untrained_adapter_is_the_start_of_a_training_run_bit_for_bit(
    recipe, console, tiny_folder, tmp_path, method
):
    asked = recipe(method=method, seed=4)
    started = start(fresh(tiny_folder), asked, batches_of(asked))

    facts = init(asked, tmp_path / "adapter", console)

    loaded = loraga.load(fresh(tiny_folder), tmp_path / "adapter", is_trainable=True)
    assert_same(adapter_state(loaded), adapter_state(started.model))
    if started.report is not None:
        assert facts["coverage"] == started.report.coverage
        assert facts["cosine"] == started.report.cosine
    else:
        assert "coverage" not in facts


def test_a_recipe_without_an_adapter_is_refused_before_data_are_read(recipe, console, tmp_path):
    asked = recipe(method="full", data=str(tmp_path / "nowhere.jsonl"))

    with pytest.raises(SettingsError, match="method: full has no adapter to write; name another method"):
        init(asked, tmp_path / "adapter", console)

    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("method", ["lora_ga", "gradient"])
def test_an_adapter_from_the_estimated_file_is_that_from_the_data_bit_for_bit(recipe, console, tmp_path, method):
    keys = {"method": method, "per_device_train_batch_size": 2}
    estimate(recipe(**keys, gradient_batches=10), tmp_path / "gradients.safetensors", console)

    init(recipe(**keys, gradients=str(tmp_path / "gradients.safetensors")), tmp_path / "from-file", console)
    init(recipe(**keys, gradient_batches=10), tmp_path / "from-data", console)
    init(recipe(**keys, gradient_batches=8), tmp_path / "from-less-data", console)

    files = {name: load_file(tmp_path / name / WEIGHTS) for name in ("from-file", "from-data", "from-less-data")}
    assert_same(files["from-file"], files["from-data"])
    assert_moved(files["from-less-data"], files["from-data"])


def test_a_file_may_serve_a_smaller_rank_than_it_was_made_for(recipe, console, tiny_folder, tmp_path):
    estimate(recipe(rank=8), tmp_path / "gradients.safetensors", console)

    init(recipe(rank=2, gradients=str(tmp_path / "gradients.safetensors")), tmp_path / "adapter", console)

    assert loraga.load(fresh(tiny_folder), tmp_path / "adapter").peft_config["default"].r == 2


def test_the_estimated_file_holds_the_gradient_of_every_layer(recipe, console, tiny_folder, tmp_path):
    asked = recipe(rank=8, gradient_batches=3, per_device_train_batch_size=4)  # 4 ranks: every singular direction
    file = tmp_path / "new" / "gradients.safetensors"

    facts = estimate(asked, file, console)

    batches = [plain_batch(batch) for batch in batches_of(asked)]
    terms = [int((batch["labels"] != -100).sum()) for batch in batches]
    assert len(set(terms)) > 1
    assert facts | {"seconds": 0} == {
        "file": str(file),
        "layers": 14,
        "rank": 8,
        "seconds": 0,
        "loss_terms": sum(terms),
    }
    expected = autograd_gradients(fresh(tiny_folder), batches, terms)
    found = loraga.load_gradients(file)
    assert set(found) == set(expected) - {"lm_head"}
    for layer, gradient in found.items():
        matrix = (gradient.U * gradient.S) @ gradient.Vh
        assert relative_difference(matrix, expected[layer]) < 1e-4
    assert console.file.getvalue() == "estimating the gradient on 3 micro-batches\n"


def test_a_layer_that_gets_no_adapter_is_not_in_the_file(recipe, console, tmp_path):
    estimate(recipe(target_modules=["v_proj"]), tmp_path / "gradients.safetensors", console)

    assert {layer.rpartition(".")[2] for layer in loraga.load_gradients(tmp_path / "gradients.safetensors")} == {
        "v_proj"
    }


@pytest.mark.parametrize("work", [estimate, init])
def test_bad_data_leave_nothing_behind(recipe, console, tmp_path, work):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "1", "target": ""}\n')

    with pytest.raises(DataError, match=r"row 1 of \S+/bad\.jsonl has no target"):
        work(recipe(data=str(tmp_path / "bad.jsonl")), tmp_path / "out", console)

    assert not (tmp_path / "out").exists()
