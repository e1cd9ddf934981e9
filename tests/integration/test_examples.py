"""Every example runs as it stands on a tiny model, and what it saves loads by plain PEFT."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.lab.conftest import byte_tokenizer, tiny_model
from tests.pages import ROOT, random_texts

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),  # no accelerator here
    # TRL 1.16.0 sets its default by a name that transformers 5.23 has deprecated
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]
EXAMPLES = ROOT / "examples"
LINES = 40
ROWS = {
    "sft.py": lambda text: {"prompt": text[:20], "completion": text[20:]},
    "qlora_sft.py": lambda text: {"prompt": text[:20], "completion": text[20:]},
    "dpo.py": lambda text: {"prompt": text[:10], "chosen": text[10:25], "rejected": text[25:]},
    "grpo.py": lambda text: {"prompt": text[:20], "answer": text[20:]},
    "classification.py": lambda text: {"text": text, "label": len(set(text)) % 3},
    "custom_loop.py": lambda text: {"text": text},
}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def run(name: str, model: Path, folder: Path, monkeypatch) -> Path:
    data, output = folder / "rows.jsonl", folder / "output"
    data.write_text("".join(json.dumps(ROWS[name](text)) + "\n" for text in random_texts(64)))
    limit = ["--epochs", "1"] if name == "custom_loop.py" else ["--steps", "2"]
    monkeypatch.setattr(sys, "argv", [name, str(model), str(data), str(output), *limit])
    monkeypatch.chdir(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return output


def test_every_example_is_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_an_example_is_short_and_ends_in_an_adapter_that_plain_peft_loads(name, model, tmp_path, monkeypatch, capsys):
    assert len((EXAMPLES / name).read_text().splitlines()) < LINES
    output = run(name, model, tmp_path, monkeypatch)
    assert "coverage" in capsys.readouterr().out  # the report was printed
    assert json.loads((output / "loraga_report.json").read_text())["scheme"] == "lora_ga"
    kind = AutoModelForSequenceClassification if name == "classification.py" else AutoModelForCausalLM
    settings = {"num_labels": 3} if name == "classification.py" else {}
    base = kind.from_pretrained(model, **settings)
    loaded = PeftModel.from_pretrained(base, str(output)).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        trained = loaded(input_ids=ids).logits
        with loaded.disable_adapter():
            before = loaded(input_ids=ids).logits
    assert loaded.peft_config["default"].r == 16  # 2r, with the start
    assert not torch.equal(trained, before)
