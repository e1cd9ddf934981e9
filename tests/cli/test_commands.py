"""The commands one after the other, as a user types them, on a tiny model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from loraga.cli import main
from tests.integration.common import assert_same
from tests.lab.conftest import byte_tokenizer, tiny_model

from .workplace import build

MORE = "held_out_rows: 4\nmetric: exact_match\nmax_new_tokens: 3\nrank: 4\ngamma: 64\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    build(folder)
    recipe = folder / "good.yaml"
    recipe.write_text(recipe.read_text() + MORE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "good.yaml", "output_dir=trained"]) == 0
    return folder


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Runs a command that must succeed, and gives what it printed."""
    monkeypatch.chdir(place)

    def command(*words):
        assert main(list(words)) == 0
        return capsys.readouterr().out

    return command


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(30)[None]).logits


def base(place):
    return AutoModelForCausalLM.from_pretrained(place / "tiny")


def test_train_leaves_everything_in_its_folder(place):
    folder = place / "trained"

    expected = {"recipe.yaml", "versions.json", "log.jsonl", "metrics.json", "loss.png", "adapter", "evaluation.jsonl"}
    assert expected <= {each.name for each in folder.iterdir()}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "loraga_report.json"} <= {
        each.name for each in (folder / "adapter").iterdir()
    }
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    assert {"loss", "learning_rate", "tokens", "seconds", "peak_memory"} <= set(log[0])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 2
    assert metrics["held_out"]["rows"] == 4


def test_the_trained_adapter_is_loaded_by_plain_peft(place):
    original = logits(base(place))
    trained = logits(PeftModel.from_pretrained(base(place), place / "trained" / "adapter"))

    assert not torch.allclose(trained, original, atol=1e-3)


def test_the_resolved_recipe_trains_the_same_adapter(place, run):
    again = place / "again.yaml"
    again.write_text((place / "trained" / "recipe.yaml").read_text())

    run("train", "again.yaml", "output_dir=again")

    weights = "adapter/adapter_model.safetensors"
    assert_same(load_file(place / "again" / weights), load_file(place / "trained" / weights))


def test_train_prints_its_metrics_as_json(place, run):
    printed = json.loads(run("train", "good.yaml", "output_dir=trained", "--json"))

    assert printed == json.loads((place / "trained" / "metrics.json").read_text())


def test_evaluate_measures_the_run_the_base_and_an_adapter(place, run):
    trained = json.loads(run("evaluate", "good.yaml", "output_dir=trained", "--json"))
    untrained = json.loads(run("evaluate", "good.yaml", "output_dir=trained", "--base", "--json"))
    named = json.loads(
        run("evaluate", "good.yaml", "--adapter", "trained/adapter", "--output", "rows_of_it.jsonl", "--json")
    )

    assert trained["loss"] == json.loads((place / "trained" / "metrics.json").read_text())["held_out"]["loss"]
    assert named["loss"] == trained["loss"] != untrained["loss"]
    assert len((place / "rows_of_it.jsonl").read_text().splitlines()) == 1 + 4
    assert "exact_match" in run("evaluate", "good.yaml", "output_dir=trained")


def test_export_at_another_rank_and_merged(place, run):
    trained = logits(PeftModel.from_pretrained(base(place), place / "trained" / "adapter"))

    assert "rank 3" in run("export", "trained", "small", "--rank", "3")
    run("export", "trained/adapter", "merged", "--merge")

    config = json.loads((place / "small" / "adapter_config.json").read_text())
    assert config["r"] == 3
    merged = AutoModelForCausalLM.from_pretrained(place / "merged")
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)
    assert (place / "merged" / "tokenizer.json").exists()


def test_inspect_says_what_a_rank_covers_and_writes_it(place, run):
    (place / "adalora.yaml").write_text((place / "good.yaml").read_text() + "method: adalora\ninit_r: 9\n")

    said = run("inspect", "adalora.yaml", "gradient_batches=2", "--output", "inspected")

    found = json.loads((place / "inspected" / "inspect.json").read_text())
    percent = f"{100 * found['median']['coverage']['4']:.1f} %"
    assert f"Rank 4 covers {percent} of the squared gradient in the median layer" in said
    assert "What it does not say" in said
    assert len(found["layers"]) == 14


def test_inspect_of_a_model_is_that_of_the_recipe_that_the_command_line_writes(place, run):
    keys = (
        "gradient_batches=2",
        "per_device_train_batch_size=2",
        "rank=4",
        "template=none",
        "held_out_rows=4",
        "--json",
    )
    words = ("--data", "rows.jsonl", "--prompt", "question", "--target", "answer")
    alone = json.loads(run("inspect", "tiny", *words, *keys))
    in_file = json.loads(run("inspect", "good.yaml", *keys))

    assert alone["layers"] == in_file["layers"]
    assert {"inspections/tiny/inspect.json", "inspections/good/inspect.json"} <= {
        str(file.relative_to(place)) for file in place.glob("inspections/*/*")
    }


def test_inspect_writes_nothing_where_it_is_stopped(place, monkeypatch, capsys):
    monkeypatch.chdir(place)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("loraga.lab.inspection.full_gradient.mean_loss", stop)

    assert main(["inspect", "good.yaml", "--output", "stopped"]) == 130

    assert capsys.readouterr().err == "loraga: interrupted; stopped is as it was\n"
    assert not (place / "stopped").exists()


def test_init_from_a_gradients_file_is_init_from_the_data(place, run):
    run("estimate", "good.yaml", "--output", "gradient.safetensors")
    run("init", "good.yaml", "gradients=gradient.safetensors", "--output", "from_file")
    run("init", "good.yaml", "--output", "from_data")

    one, other = (load_file(place / name / "adapter_model.safetensors") for name in ("from_file", "from_data"))
    assert_same(one, other)
    started = PeftModel.from_pretrained(base(place), place / "from_file")
    torch.testing.assert_close(logits(started), logits(base(place)), rtol=1e-4, atol=1e-4)


def test_init_writes_a_mirrored_start_that_plain_peft_loads(place, run):
    said = run("init", "good.yaml", "method=mirrored", "--output", "mirrored")

    assert "mirrored: an untrained adapter (mirrored) of the original base model" in said
    assert "half of LoRA-GA's learning rate" in said
    model = PeftModel.from_pretrained(base(place), place / "mirrored", is_trainable=True)
    torch.testing.assert_close(logits(model), logits(base(place)), rtol=1e-5, atol=1e-5)
    assert model.peft_config["default"].r == 8
    assert json.loads(run("doctor", "mirrored", "--json"))["adapter"]["loads_as_it_is"] is True


def test_init_writes_a_residual_base_and_export_takes_what_is_trained_on_it_back(place, run, capsys):
    said = run("init", "good.yaml", "--residual", "--output", "residual")
    facts = json.loads(run("init", "good.yaml", "--residual", "--output", "residual", "--json"))
    residual = AutoModelForCausalLM.from_pretrained(place / "residual")
    model = PeftModel.from_pretrained(residual, place / "residual" / "adapter", is_trainable=True)
    start = logits(model)
    for weight in model.parameters():
        weight.data += 0.01 * weight.requires_grad
    model.save_pretrained(place / "elsewhere")

    run("export", "elsewhere", "back")

    assert "residual: the base model with its start subtracted, of which rounding lost" in said
    assert (facts["base"], facts["adapter"], facts["method"]) == ("residual", "residual/adapter", "lora_ga")
    torch.testing.assert_close(start, logits(base(place)), rtol=1e-4, atol=1e-4)
    back = PeftModel.from_pretrained(base(place), place / "back")
    torch.testing.assert_close(logits(back), logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(back), start, atol=1e-2)
    assert main(["doctor", "elsewhere"]) == 1  # not as it is
    assert "residual base" in " ".join(capsys.readouterr().out.split())


def test_doctor_tells_what_an_adapter_is(place, run):
    assert "trained" in run("doctor", "trained/adapter")
    assert json.loads(run("doctor", "trained/adapter", "--json"))["adapter"]["kind"] == "loraga"


def test_config_shows_the_resolved_recipe_the_schema_and_the_table(run):
    shown = yaml.safe_load(run("config", "good.yaml", "rank=3"))
    schema = json.loads(run("config", "--schema"))

    assert (shown["rank"], shown["lr_scheduler_type"]) == (3, "cosine")
    assert set(shown) <= set(schema["properties"])
    assert "| `learning_rate` |" in run("config", "--table")
    assert "| `sst2` |" in run("config", "--tasks")


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    "words",
    [
        ["method=lora", "gamma=null"],
        ["method=rslora", "gamma=null"],
        ["method=gaussian", "gamma=null"],
        ["method=stable_output"],
        ["method=mirrored"],
        ["method=gradient", "gamma=null"],
        ["offset=none", "gamma=1e8"],
        ["offset=weights"],
        ["gradient_checkpointing=true"],
        ["gradient_accumulation_steps=2", "num_train_epochs=1", "max_steps=null"],
        ["learning_rate=auto", "rank=2", "alpha=32", "gamma=16"],
        ["temperature=0.8", "top_p=0.9"],
        ["optim=sgd", "max_grad_norm=0.5", "label_smoothing_factor=0.1"],
        ["train_sampling_strategy=group_by_length"],
        ["dtype=bfloat16"],
    ],
    ids=" ".join,
)
def test_train_carries_out_what_a_recipe_can_say(place, run, words):
    folder = f"variants/{'_'.join(words)}"

    metrics = json.loads(run("train", "good.yaml", f"output_dir={folder}", "--json", *words))

    log = [json.loads(line) for line in (place / folder / "log.jsonl").read_text().splitlines()]
    assert metrics["steps"] == log[-1]["step"] >= 2
    adapter = PeftModel.from_pretrained(base(place), place / folder / "adapter")
    assert not torch.allclose(logits(adapter), logits(base(place)), atol=1e-4)
    if "dtype=bfloat16" not in words:  # in float32, what was measured is what plain PEFT loads
        again = json.loads(
            run("evaluate", "good.yaml", f"output_dir={folder}", "--json", "--output", f"{folder}/x.jsonl")
        )
        if "temperature=0.8" not in words:
            assert again["loss"] == pytest.approx(metrics["held_out"]["loss"], rel=1e-5)


TASK = "task: sst2\nlabels: [n, p]\ntarget: label\nprompt: sentence\n"
LABELLED = [{"sentence": f"film {number}", "label": number % 2} for number in range(24)]


def test_validation_rows_are_measured_by_loss_and_where_asked_by_the_metric(place, run):
    (place / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LABELLED))
    (place / "task.yaml").write_text(TASK + "model: tiny\ndata: films.jsonl\ntemplate: none\nlearning_rate: 1e-3\n")
    words = ["task.yaml", "--json", "max_steps=1", "rank=4", "gamma=64", "held_out_rows=6", "validation_rows=5"]

    by_loss = json.loads(run("train", *words, "output_dir=by_loss"))
    judged = json.loads(run("train", *words, "output_dir=judged", "validation_metric=true"))

    def lines(folder, name):
        return [json.loads(line) for line in (place / folder / name).read_text().splitlines()[1:]]

    assert by_loss["validation"] == by_loss["validation"] | {"rows": 5, "metric": "none", "score": None, "scores": {}}
    assert all(set(line) == {"row", "loss", "terms"} for line in lines("by_loss", "validation.jsonl"))
    validation, held_out = (lines("judged", name) for name in ("validation.jsonl", "evaluation.jsonl"))
    assert (judged["validation"]["metric"], judged["held_out"]["metric"]) == ("label_word", "label_word")
    assert judged["validation"]["score"] == sum(line["score"] for line in validation) / 5
    assert judged["validation"]["loss"] == by_loss["validation"]["loss"]
    assert judged["held_out"]["rows"] == len(held_out) == 6


def test_full_fine_tuning_saves_a_model_that_transformers_loads(place, run):
    words = ["method=full", "rank=8", "gamma=null", "output_dir=full"]
    metrics = json.loads(run("train", "good.yaml", "--json", *words))

    trained = AutoModelForCausalLM.from_pretrained(place / "full" / "model")
    assert not torch.allclose(logits(trained), logits(base(place)), atol=1e-4)
    assert metrics["held_out"]["loss"] > 0
    assert (place / "full" / "model" / "tokenizer.json").exists()


def test_chats_are_trained_in_the_models_template(place, run):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tiny_model().save_pretrained(place / "chatty")
    tokenizer.save_pretrained(place / "chatty")
    turns = [
        [
            {"role": "user", "content": f"say {number}"},
            {"role": "assistant", "content": str(number)},
            {"role": "user", "content": "and again"},
            {"role": "assistant", "content": f"{number} {number}"},
        ]
        for number in range(8)
    ]
    (place / "chat.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    words = ["model=chatty", "data=chat.jsonl", "chat=messages", "prompt=null", "target=null", "template=auto"]

    metrics = json.loads(run("train", "good.yaml", "output_dir=chat", "--json", *words))

    rows = [json.loads(line) for line in (place / "chat" / "evaluation.jsonl").read_text().splitlines()[1:]]
    assert {len(row["target"].split()) for row in rows} == {2}  # the last turn is asked for
    assert metrics["held_out"]["terms"] == sum(len(row["target"]) + 1 + len(row["target"]) // 2 + 1 for row in rows)


def test_held_out_rows_are_measured_on_the_way_too(place, run):
    run("train", "good.yaml", "output_dir=on_the_way", "eval_strategy=steps", "eval_steps=1")

    log = [json.loads(line) for line in (place / "on_the_way" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "eval_loss" in line] == [1, 2]


def test_a_recipe_that_lies_in_its_own_folder_stays_as_it_was_written(place, run):
    own = place / "own" / "recipe.yaml"
    own.parent.mkdir()
    own.write_text("# mine\n" + (place / "good.yaml").read_text() + "output_dir: own\n")

    run("train", "own/recipe.yaml")

    assert own.read_text().startswith("# mine\n")
    assert (place / "own" / "metrics.json").exists()


def test_a_run_does_not_go_on_with_other_data(place, run, capsys):
    rows = place / "changing.jsonl"
    rows.write_text((place / "rows.jsonl").read_text())
    words = ["train", "good.yaml", "data=changing.jsonl", "output_dir=changing"]
    run(*words)
    (place / "changing" / "metrics.json").unlink()  # as if it had been interrupted
    rows.write_text(rows.read_text().replace("what is 3", "what was 3"))

    assert main(words) == 2
    assert "the data have changed since the run in changing began" in capsys.readouterr().err


def test_prompts_on_the_command_line_are_taken_as_they_stand(run):
    for prompt in ("Q: {question} #1", "### {question}\n\n", "[{question}]", "3"):
        assert yaml.safe_load(run("config", "good.yaml", f"prompt={prompt}"))["prompt"] == prompt
    assert yaml.safe_load(run("config", "good.yaml", 'prompt="{question}\\n"'))["prompt"] == "{question}\n"


def test_names_with_brackets_are_shown_as_they_are(place, run):
    (place / "x[").mkdir()
    (place / "x[" / "b].jsonl").write_text((place / "rows.jsonl").read_text())

    run("train", "good.yaml", "data=x[/b].jsonl", "output_dir=out [/x]", "sequence_length=20")

    assert (place / "out [" / "x]" / "metrics.json").exists()


def test_an_adapter_that_plain_peft_loads_wrongly_is_neither_evaluated_nor_exported(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    rival = place / "rival"
    shutil.copytree(place / "trained" / "adapter", rival)
    (rival / "loraga.json").unlink()
    config = json.loads((rival / "adapter_config.json").read_text())
    (rival / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "lora_ga"}))

    for words in (["evaluate", "good.yaml", "--adapter", "rival"], ["export", "rival", "out"]):
        assert main(words) == 2
        assert "PEFT" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path` was renamed:UserWarning")
def test_an_adapter_of_another_base_model_is_named_with_it(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    LlamaForCausalLM(LlamaConfig(**{**tiny_model().config.to_dict(), "intermediate_size": 24})).save_pretrained(
        "other_base"
    )
    byte_tokenizer().save_pretrained("other_base")

    for words in (
        ["evaluate", "good.yaml", "model=other_base", "--adapter", "trained/adapter", "--output", "other_base.jsonl"],
        ["export", "trained", "out", "--model", "other_base"],
    ):
        assert main(words) == 2
        assert "the adapter trained/adapter does not fit other_base" in capsys.readouterr().err


def test_a_training_whose_loss_is_not_finite_stops_with_one_line(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    broken = tiny_model()
    broken.lm_head.weight.data.fill_(torch.nan)
    broken.save_pretrained("broken")
    byte_tokenizer().save_pretrained("broken")

    assert main(["train", "good.yaml", "output_dir=nan", "model=broken", "method=lora", "gamma=null"]) == 1
    assert "the loss is nan at step 1: training has diverged; lower learning_rate" in capsys.readouterr().err


def test_the_log_is_json_also_where_a_gradient_is_infinite(place, run):
    run("train", "good.yaml", "output_dir=infinite", "method=lora", "gamma=null", "alpha=1e20")

    lines = (place / "infinite" / "log.jsonl").read_text().splitlines()
    log = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert {line["grad_norm"] for line in log} == {None}


def test_estimate_makes_the_file_that_a_recipe_names(place, run):
    run("estimate", "good.yaml", "gradients=made.safetensors", "--output", "made.safetensors")
    run("init", "good.yaml", "gradients=made.safetensors", "--output", "from_made")
