import io

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import loraga
from loraga.errors import SaveError
from loraga.lab.base_model import BaseModel
from loraga.lab.errors import DataError, SettingsError
from loraga.lab.initial import estimate, init
from loraga.lab.methods import METHODS
from loraga.lab.preparation import prepare
from loraga.lab.starts import start
from tests.integration.common import adapter_state, assert_moved, assert_same, eval_logits
from tests.models import autograd_gradients, relative_difference

from .conftest import saved, tiny_model

ADAPTERS = [name for name, method in METHODS.items() if method.adapter and not method.no_init]
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


def test_a_method_whose_start_no_folder_holds_is_refused_with_the_reason(recipe, console, tmp_path):
    with pytest.raises(SettingsError, match=r"adalora has no start to write \(its ranks .*\); use `loraga train`"):
        init(recipe(method="adalora"), tmp_path / "adapter", console)

    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("method", ["pissa", "dora", "adalora", "eva", "peft_lora_ga"])
def test_no_gradient_is_estimated_for_a_method_that_reads_no_file(recipe, console, tmp_path, method):
    with pytest.raises(SettingsError, match=f"{method} is started by PEFT alone, which reads no gradients file"):
        estimate(recipe(method=method), tmp_path / "gradients.safetensors", console)

    assert not list(tmp_path.iterdir())


SUBTRACTED = ["lora_ga", "gaussian", "stable_output", "gradient"]


@pytest.mark.parametrize("method", SUBTRACTED)
def test_a_residual_base_and_its_adapter_are_the_base_models_function_in_plain_peft(
    recipe, console, tiny_folder, tmp_path, method
):
    facts = init(recipe(method=method), tmp_path / "out", console, residual=True)

    expected, base = eval_logits(fresh(tiny_folder), PROBE), fresh(tmp_path / "out")
    assert relative_difference(eval_logits(base, PROBE), expected) > 1e-3
    model = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter"))
    assert relative_difference(eval_logits(model, PROBE), expected) <= 1e-5
    assert (facts["base"], facts["adapter"]) == (str(tmp_path / "out"), str(tmp_path / "out" / "adapter"))
    assert facts["rounding"] < 1e-5
    assert facts["function_change"] < 1e-5
    assert model.peft_config["default"].r == 4
    tokens = [AutoTokenizer.from_pretrained(folder)("2 + 2")["input_ids"] for folder in (tmp_path / "out", tiny_folder)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("method", ["pissa", "peft_lora_ga"])
def test_a_residual_base_is_also_written_of_what_peft_subtracts(recipe, console, tiny_folder, tmp_path, method):
    facts = init(recipe(method=method), tmp_path / "out", console, residual=True)

    expected, base = eval_logits(fresh(tiny_folder), PROBE), fresh(tmp_path / "out")
    assert relative_difference(eval_logits(base, PROBE), expected) > 1e-3
    model = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter"))
    assert relative_difference(eval_logits(model, PROBE), expected) <= 1e-5
    assert (facts["rounding"] < 1e-5, model.peft_config["default"].r) == (True, 4)


@pytest.fixture
def half_folder(tiny_folder, tmp_path):
    saved(AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16), tmp_path / "half")
    return str(tmp_path / "half")


@pytest.mark.parametrize("keys", [{"dtype": "auto"}, {"dtype": "bfloat16"}])
def test_rounding_in_half_precision_is_refused_before_the_gradient_and_told_where_it_is_accepted(
    recipe, console, half_folder, tmp_path, keys
):
    asked = recipe(model=half_folder, **keys)
    with pytest.raises(SettingsError, match=r"torch\.bfloat16 rounds part of the start away; .*--allow-rounding"):
        init(asked, tmp_path / "out", console, residual=True)
    assert not (tmp_path / "out").exists()

    facts = init(asked, tmp_path / "out", console, residual=True, allow_rounding=True)

    assert 1e-4 < facts["rounding"] < 0.2
    assert 1e-4 < facts["function_change"] < 0.2
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}


def test_a_half_precision_model_is_subtracted_from_in_float32_without_being_asked(
    recipe, console, half_folder, tmp_path
):
    facts = init(recipe(model=half_folder), tmp_path / "out", console, residual=True)

    assert facts["rounding"] < 1e-5
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


@pytest.fixture
def tied_folder(tmp_path):
    model = tiny_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return str(saved(model, tmp_path / "tied"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter")
def test_a_tied_weight_is_refused_with_the_reason(recipe, console, tied_folder, tmp_path):
    asked = recipe(model=tied_folder, target_modules=["q_proj", "lm_head"])

    with pytest.raises(SettingsError, match=r"no residual base .*lm_head: .*tied .*method: mirrored leaves the base"):
        init(asked, tmp_path / "out", console, residual=True)

    assert not (tmp_path / "out").exists()


def test_a_quantised_weight_is_refused_with_the_reason(recipe, console, tiny_folder, tmp_path):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    saved(AutoModelForCausalLM.from_pretrained(tiny_folder, quantization_config=config), tmp_path / "four_bits")

    with pytest.raises(SettingsError, match=r"cannot change a quantised weight; .*method: mirrored leaves the base"):
        init(recipe(model=str(tmp_path / "four_bits")), tmp_path / "out", console, residual=True)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "lora"}, "method: lora has no start to subtract"),
        ({"method": "mirrored"}, "--residual excludes method: mirrored, which leaves the base as it is"),
        ({"offset": "none"}, "--residual excludes offset: none, which subtracts nothing"),
        ({"dropout": 0.1}, r"with lora_dropout > 0 .*; method: mirrored leaves the base as it is"),
    ],
)
def test_a_recipe_of_which_no_residual_base_can_be_written_is_refused(recipe, console, tmp_path, keys, message):
    with pytest.raises(SettingsError, match=message):
        init(recipe(**keys), tmp_path / "out", console, residual=True)

    assert not (tmp_path / "out").exists()


def test_the_original_models_folder_is_not_overwritten(recipe, console, tiny_folder):
    before = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}

    with pytest.raises(SaveError, match="holds another model, which would be lost; name another directory"):
        init(recipe(), tiny_folder, console, residual=True)

    assert {path.name: path.read_bytes() for path in tiny_folder.iterdir()} == before


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
