"""docs/other-tools.md from top to end: its commands, and its YAML files as the tools that they are for take them."""

from __future__ import annotations

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loraga.cli import main
from tests.integration.common import eval_logits
from tests.models import relative_difference
from tests.pages import MODEL, ROOT, blocks, blocks_of, build_workplace, commands

PAGE = ROOT / "docs" / "other-tools.md"
COMMANDS = [words[1:] for block in blocks_of(PAGE) if block.language == "bash" for words in commands(block)]
INIT = [words for words in COMMANDS if words[0] == "init"]
EXPORT = [words for words in COMMANDS if words[0] == "export"]
FOREIGN = [block for block in blocks_of(PAGE) if block.language == "yaml"]
# {tool: (its key of the base model, its key of the adapter)}, as their sources have them
KEYS = {
    "LLaMA-Factory": ("model_name_or_path", "adapter_name_or_path"),
    "axolotl": ("base_model", "lora_model_dir"),
}
PROBE = {"input_ids": torch.arange(40, 88).reshape(2, 24)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The pages' workplace after the page's `loraga init` commands."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_workplace(folder)
        (folder / "recipe.yaml").write_text(next(b.text for b in blocks("yaml") if not b.not_run))
        for words in INIT:
            assert main(words) == 0
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)


def model_of(name):
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()


def settings(tool):
    return yaml.safe_load(next(block.text for block in FOREIGN if tool in block.not_run))


def test_the_page_has_a_file_for_each_tool_and_both_kinds_of_command():
    assert [next(tool for tool in KEYS if tool in block.not_run) for block in FOREIGN] == list(KEYS)
    assert [("--residual" in words, "method=mirrored" in words) for words in INIT] == [(False, True), (True, False)]
    assert len(EXPORT) == 3


@pytest.mark.parametrize("tool", KEYS)
@pytest.mark.parametrize("form", ["mirrored", "residual"])
def test_the_directories_in_a_tools_file_are_what_the_commands_have_written(tool, form):
    base_key, adapter_key = KEYS[tool]
    base, adapter = settings(tool)[base_key], settings(tool)[adapter_key]
    if form == "residual":  # as the comments behind the two lines say
        text = next(block.text for block in FOREIGN if tool in block.not_run)
        base, adapter = (
            next(line.rpartition("# residual: ")[2] for line in text.splitlines() if line.startswith(key))
            for key in KEYS[tool]
        )

    model = PeftModel.from_pretrained(model_of(base), adapter, is_trainable=True).eval()

    assert relative_difference(eval_logits(model, PROBE), eval_logits(model_of(MODEL), PROBE)) <= 1e-5
    assert {name.split(".")[-3] for name, weight in model.named_parameters() if weight.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    assert model.peft_config["default"].r == (16 if form == "mirrored" else 8)


def test_the_export_commands_take_what_was_trained_on_the_residual_base_back(place, capsys):
    model = PeftModel.from_pretrained(model_of("residual"), "residual/adapter", is_trainable=True)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(**PROBE, labels=PROBE["input_ids"]).loss.backward()
        optimizer.step()
    model.save_pretrained("saves/lora_ga")
    trained, original = eval_logits(model, PROBE), model_of(MODEL)
    assert relative_difference(trained, eval_logits(original, PROBE)) > 1e-2

    for words in EXPORT:
        assert main(words) == 0

    in_peft = PeftModel.from_pretrained(original, "exported")
    assert in_peft.peft_config["default"].r == 16
    assert relative_difference(eval_logits(in_peft, PROBE), trained) <= 1e-5
    assert relative_difference(eval_logits(model_of("merged"), PROBE), trained) <= 1e-5
    assert PeftModel.from_pretrained(model_of(MODEL), "compressed").peft_config["default"].r == 8
    capsys.readouterr()
    assert main(["doctor", "saves/lora_ga"]) == 1  # not as it is
    assert "residual base" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", "recipe.yaml", "--adapter", "saves/lora_ga", "--output", "rows.jsonl"]) == 2
