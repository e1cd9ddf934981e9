"""A folder in which recipes can be wrong: a tiny model, rows of several kinds, and a recipe that is right."""

from __future__ import annotations

import json
from pathlib import Path

from tests.lab.conftest import byte_tokenizer, tiny_model

GOOD = """\
model: tiny
data: rows.jsonl
prompt: question
target: answer
template: none
learning_rate: 1e-3
max_steps: 2
per_device_train_batch_size: 2
"""
ROWS = [{"question": f"what is {number} + 1 ?", "answer": str(number + 1)} for number in range(12)]

FILES = {
    "good.yaml": GOOD,
    "twice.yaml": "model: a\ndata: b\nmodel: c\n",
    "list.yaml": "- model\n",
    "empty.yaml": "",
    "word.yaml": "just a word\n",
    "broken.yaml": "model: [a\ndata: b\n",
    "tab.yaml": "model: a\n\tdata: b\n",
    "modle.yaml": GOOD.replace("model:", "modle:"),
    "several.yaml": GOOD.replace("max_steps: 2", "max_steps: two\nrank: 0\npakcing: true"),
    "notes.txt": "no data\n",
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "empty.jsonl": "",
    "torn.jsonl": '{"question": "a", "answer": "b"}\n{"question": "a", "ans\n',
    "words.jsonl": '"a word"\n',
    "no_target.jsonl": json.dumps(ROWS[0]) + "\n" + json.dumps({"question": "a", "answer": ""}) + "\n",
    "null_target.jsonl": json.dumps({"question": "a", "answer": None}) + "\n",
    "long.jsonl": json.dumps(ROWS[0]) + "\n" + json.dumps({"question": "a" * 90, "answer": "b"}) + "\n",
    "chats.jsonl": json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n",
    "sharegpt.jsonl": json.dumps({"messages": [{"from": "human", "value": "a"}]}) + "\n",
    "damaged/adapter_config.json": "{",
    "plain/adapter_config.json": '{"peft_type": "LORA", "init_lora_weights": "lora_ga"}',
    "other/some_file": "",
}


def build(folder: Path) -> None:
    """Writes everything into an empty folder."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes(b"model: \xe9\n")
    tokenizer = byte_tokenizer()
    tiny_model().save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    tiny_model().save_pretrained(folder / "no_tokenizer")
    tokenizer.eos_token = tokenizer.pad_token = None
    tiny_model().save_pretrained(folder / "no_end")
    tokenizer.save_pretrained(folder / "no_end")
