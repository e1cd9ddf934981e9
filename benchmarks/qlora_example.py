"""The QLoRA example on SmolLM2-135M in NF4: 20 steps on GSM8K, saved, reloaded onto the 4-bit and the float32 base.

Losses are those of 16 held-out answers. On the 4-bit base the adapter's logits are compared with those of the trained
model, in float32 from the same values (TRL trains bfloat16 factors); on the float32 base with those of a model to whose
weights the change eta (B A - B0 A0) is added. All in train mode, whose kernels are those of training. Some minutes:

    python benchmarks/qlora_example.py --data ../shared/data/gsm8k/train.jsonl --output benchmarks/results
"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraga.lab.smollm2 import converted
from loraga.layers import lora_layers
from loraga.offset import offset_of, trained_factors
from subjects import parser

EXAMPLE = Path(__file__).parents[1] / "examples" / "qlora_sft.py"
STEPS, TRAINED, HELD_OUT = 20, 160, 16
CHARACTERS = 260  # of question and answer: some 70 tokens

Row = dict[str, str]


def rows_of(path: Path) -> list[Row]:
    """The first short rows, as the example wants them."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in rows]
    return [row for row in pairs if len(row["prompt"] + row["completion"]) < CHARACTERS][: TRAINED + HELD_OUT]


def run_example(model: Path, rows: list[Row], folder: Path) -> Any:
    """The example as it stands; gives its trainer."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sys.argv = [EXAMPLE.name, str(model), str(data), str(folder / "adapter"), "--steps", str(STEPS)]
    torch.manual_seed(0)
    return runpy.run_path(str(EXAMPLE), run_name="__main__")["trainer"]


def answers(model: Any, tokenizer: Any, rows: list[Row]) -> tuple[float, torch.Tensor]:
    """The mean loss of an answer's tokens, and their logits, in train mode."""
    model.train()
    losses, logits = [], []
    with torch.no_grad():
        for row in rows:
            start = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
            ids = tokenizer(row["prompt"] + row["completion"], return_tensors="pt")["input_ids"]
            found = model(input_ids=ids, use_cache=False).logits[0, start.shape[1] - 1 : -1].float()
            losses.append(torch.nn.functional.cross_entropy(found, ids[0, start.shape[1] :], reduction="none"))
            logits.append(found)
    return float(torch.cat(losses).mean()), torch.cat(logits)


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two sets of logits, the largest at any place, relative to the largest logit."""
    return float((one - other).abs().max() / other.abs().max())


def with_the_change_added(base: Any, trained: PeftModel) -> Any:
    for name, layer in lora_layers(trained, "default").items():
        now, start, weight = (
            trained_factors(layer, "default"),
            offset_of(layer, "default"),
            base.get_submodule(name).weight,
        )
        change = now.B.double() @ now.A.double() - start.B.double() @ start.A.double()
        weight.data = (weight.double() + layer.scaling["default"] * change).float()
    return base


def main() -> None:
    arguments = parser(__doc__).parse_args()
    warnings.simplefilter("ignore")
    model_folder, rows = converted(), rows_of(arguments.data)
    tokenizer, held_out = AutoTokenizer.from_pretrained(model_folder), rows[TRAINED:]
    began, processor = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = run_example(model_folder, rows[:TRAINED], Path(folder))
        seconds = time.monotonic() - began
        trained, adapter = trainer.model, f"{folder}/adapter"
        for name, tensor in (*trained.named_parameters(), *trained.named_buffers()):
            if ".lora_" in name:
                tensor.data = tensor.data.float()
        with trained.disable_adapter():
            before_4bit, _ = answers(trained, tokenizer, held_out)
        in_memory, expected_4bit = answers(trained, tokenizer, held_out)
        config = trained.get_base_model().config.quantization_config
        base = AutoModelForCausalLM.from_pretrained(model_folder, quantization_config=config)
        after_4bit, reloaded_4bit = answers(PeftModel.from_pretrained(base, adapter), tokenizer, held_out)

        base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        before_fp32, _ = answers(base, tokenizer, held_out)
        after_fp32, reloaded_fp32 = answers(PeftModel.from_pretrained(base, adapter), tokenizer, held_out)
        base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        _, expected_fp32 = answers(with_the_change_added(base, trained), tokenizer, held_out)
    found = {
        "steps": STEPS,
        "training_rows": TRAINED,
        "held_out_rows": HELD_OUT,
        "in_memory_loss": in_memory,
        "nf4": {
            "loss_before": before_4bit,
            "loss_after": after_4bit,
            "largest_logit_difference": largest_difference(reloaded_4bit, expected_4bit),
        },
        "float32": {
            "loss_before": before_fp32,
            "loss_after": after_fp32,
            "largest_logit_difference": largest_difference(reloaded_fp32, expected_fp32),
        },
        "between_the_bases": largest_difference(reloaded_fp32, reloaded_4bit),
        "example_seconds": seconds,
        "processor_seconds": time.process_time() - processor,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.output is not None:
        (arguments.output / "qlora_example.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
