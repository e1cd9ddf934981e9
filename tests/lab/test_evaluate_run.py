import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from loraga.lab.base_model import BaseModel
from loraga.lab.errors import DataError, SettingsError
from loraga.lab.evaluate_run import evaluate_recipe, load_saved
from loraga.lab.evaluation import evaluate
from loraga.lab.preparation import prepare
from loraga.lab.run_folder import open_folder
from loraga.lab.starts import start

from .conftest import Told, byte_tokenizer

KEYS = {"held_out_rows": 6, "metric": "exact_match", "method": "lora_ga", "learning_rate": 0.01}


def console():
    return Console(file=io.StringIO(), width=200)


def trained(recipe):
    """The model of a recipe after a few steps, which change its answers."""
    base = BaseModel.of(recipe).load()
    data = prepare(recipe, console()).data_for(base)
    batches = data.micro_batches(recipe, 0, 2)
    model = start(base, recipe, batches).model
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-2)
    for step in range(8):
        optimizer.zero_grad()
        model(**batches[step % 2]).loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def template(recipe, tmp_path_factory):
    """A folder with the trained results of both kinds."""
    folder = tmp_path_factory.mktemp("template")
    trained(recipe(**KEYS)).save_pretrained(str(folder / "adapter"))
    trained(recipe(**KEYS | {"method": "full"})).save_pretrained(str(folder / "model"))
    byte_tokenizer().save_pretrained(str(folder / "model"))
    return folder


@pytest.fixture
def run(recipe, template, tmp_path):
    """A recipe whose folder holds the trained result that is named."""

    def make(kind="adapter", **keys):
        shutil.copytree(template / kind, tmp_path / "run" / kind)
        return recipe(**KEYS | {"output_dir": str(tmp_path / "run")} | keys)

    return make


def evaluated(recipe, adapter=None, base=False, output=None, told=None):
    return evaluate_recipe(recipe, adapter, base, output, console(), told or Told())


def plainly(model, recipe, file):
    """The rows as `evaluate` measures them with a model that was loaded by other means."""
    held_out = prepare(recipe, console()).held_out
    evaluate(model.eval(), byte_tokenizer(), held_out, recipe, file, {}, Told())
    return rows(file)


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()][1:]


def assert_alike(found, expected):
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    assert [row["answer"] for row in found] == [row["answer"] for row in expected]
    assert len(found) == 6


def test_a_runs_adapter_is_measured_as_plain_peft_loads_it_unmerged(run, tiny_folder, tmp_path):
    recipe = run()
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_folder), str(tmp_path / "run" / "adapter")
    )
    expected = plainly(plain, recipe, tmp_path / "plain.jsonl")

    found = evaluated(recipe)

    assert_alike(rows(tmp_path / "run" / "evaluation.jsonl"), expected)
    assert found.title == str(tmp_path / "run" / "adapter")
    assert found.file == tmp_path / "run" / "evaluation.jsonl"
    assert found.evaluation.rows == 6
    assert found.to_dict()["accuracy"] == found.evaluation.right / 6


def test_the_base_model_is_measured_alone(run, tiny_folder, tmp_path):
    recipe = run()
    expected = plainly(AutoModelForCausalLM.from_pretrained(tiny_folder), recipe, tmp_path / "plain.jsonl")

    found = evaluated(recipe, base=True)

    assert_alike(rows(tmp_path / "run" / "base.jsonl"), expected)
    assert found.title == f"{tiny_folder}, base model"
    assert found.evaluation.loss > evaluated(recipe).evaluation.loss + 0.1


def test_a_whole_model_is_measured_as_transformers_loads_it(run, tmp_path):
    recipe = run("model", method="full")
    expected = plainly(
        AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model"), recipe, tmp_path / "plain.jsonl"
    )

    found = evaluated(recipe)

    assert_alike(rows(tmp_path / "run" / "evaluation.jsonl"), expected)
    assert found.title == str(tmp_path / "run" / "model")


def test_a_named_adapter_is_measured_in_the_place_of_the_runs(run, template, recipe, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(template / "adapter", other)
    from_run = evaluated(run())

    found = evaluated(recipe(**KEYS, output_dir=str(tmp_path / "never")), adapter=other)

    assert found.evaluation == from_run.evaluation
    assert (found.title, found.file) == (str(other), other / "evaluation.jsonl")
    assert not (tmp_path / "never").exists()


def test_rows_go_where_they_are_asked_to(run, tmp_path):
    found = evaluated(run(), output=tmp_path / "some" / "where.jsonl")

    assert found.file == tmp_path / "some" / "where.jsonl"
    assert len(rows(found.file)) == 6
    assert not (tmp_path / "run" / "evaluation.jsonl").exists()


def test_the_same_command_again_measures_nothing(run, told):
    recipe = run()
    first = evaluated(recipe)

    assert evaluated(recipe, told=told) == first
    assert (told.begun, told.work) == ([("evaluation", 6, 6)], [])


def test_rows_of_an_adapter_that_has_changed_since_are_refused(run, tmp_path):
    recipe = run()
    evaluated(recipe)
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(SettingsError, match=r"evaluation\.jsonl holds an evaluation of other settings"):
        evaluated(recipe)


def test_rows_of_an_adapter_whose_scale_has_changed_since_are_refused(run, tmp_path):
    recipe = run()
    evaluated(recipe)
    file = tmp_path / "run" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 1}))

    with pytest.raises(SettingsError, match=r"evaluation\.jsonl holds an evaluation of other settings"):
        evaluated(recipe)


def test_rows_stay_good_when_peft_writes_its_sets_in_another_order(run, tmp_path, told):
    recipe = run()
    found = evaluated(recipe)
    file = tmp_path / "run" / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    assert len(config["target_modules"]) > 1
    file.write_text(json.dumps(config | {"target_modules": config["target_modules"][::-1]}))

    assert evaluated(recipe, told=told) == found
    assert told.work == []


def test_rows_of_data_that_have_changed_since_are_refused(run, rows_file, tmp_path):
    shutil.copy(rows_file, tmp_path / "rows.jsonl")
    recipe = run(data=str(tmp_path / "rows.jsonl"))
    evaluated(recipe)
    (tmp_path / "rows.jsonl").write_text(rows_file.read_text().replace('"target": "', '"target": "0'))

    with pytest.raises(SettingsError, match=r"evaluation\.jsonl holds an evaluation of other settings"):
        evaluated(recipe)


@pytest.mark.parametrize("keys", [{"metric": "final_number"}, {"max_new_tokens": 9}, {"temperature": 0.5}], ids=str)
def test_rows_of_another_way_to_measure_are_refused(run, recipe, tmp_path, keys):
    first = run()
    evaluated(first)

    with pytest.raises(SettingsError, match="holds an evaluation of other settings"):
        evaluated(recipe(**KEYS | {"output_dir": first.output_dir} | keys))


def test_rows_stay_good_when_only_the_training_is_described_otherwise(run, recipe, told):
    first = run()
    found = evaluated(first)

    again = evaluated(recipe(**KEYS | {"output_dir": first.output_dir, "learning_rate": 0.5, "rows": 9}), told=told)

    assert again == found
    assert told.work == []


# --- what is loaded


def test_an_adapter_is_merged_in_float32_only(run, tmp_path):
    recipe = run()
    saved = tmp_path / "run" / "adapter"

    assert not isinstance(load_saved(recipe, saved), PeftModel)
    half = load_saved(replace(recipe, dtype="bfloat16"), saved)

    assert isinstance(half, PeftModel)
    assert not half.training
    assert not load_saved(recipe, saved).training


# --- what cannot be measured


def test_without_anything_trained_it_is_said_and_no_folder_is_made(recipe, tmp_path):
    asked = recipe(**KEYS, output_dir=str(tmp_path / "run"))

    with pytest.raises(SettingsError, match=r"run holds no trained adapter; train first, or name one with --adapter"):
        evaluated(asked)

    assert not (tmp_path / "run").exists()


def test_without_held_out_rows_it_is_said(run, tmp_path):
    recipe = run(held_out_rows=None, metric="none")

    with pytest.raises(
        SettingsError, match="there are no held-out rows to evaluate on; give held_out or held_out_rows"
    ):
        evaluated(recipe)

    assert not (tmp_path / "run" / "evaluation.jsonl").exists()


def test_a_folder_that_is_no_saved_model_is_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises((DataError, SettingsError), match="empty"):
        evaluated(run(), adapter=tmp_path / "empty")


def test_the_base_model_may_be_measured_before_the_run_takes_its_folder(recipe, tmp_path):
    asked = recipe(**KEYS, output_dir=str(tmp_path / "run"))
    evaluated(asked, base=True)

    with open_folder(asked) as folder:
        assert (folder / "recipe.yaml").is_file()

    assert (folder / "base.jsonl").is_file()
