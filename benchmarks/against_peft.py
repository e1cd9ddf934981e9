"""What a start by PEFT's own `lora_ga` and by `loraga.initialize` does to a model, side by side in one run.

Same model, same batches, same rank, alpha and scaling (alpha / sqrt(r)), each library's default gamma (16 for both).
Run from a checkout:

    python benchmarks/against_peft.py --data ../shared/data/gsm8k/train.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import loraga
from loraga.layers import lora_layers
from loraga.report import first_step
from loraga.scheme import Factors
from residual import autograd_gradients, text_batches
from subjects import TARGETS, lora, start_with_peft

RANK = 8
LOSS_SCALES = (1e-3, 1.0, 1e3)


def fresh(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)


def with_peft(path: Path, batches, scale: float) -> PeftModel:
    return start_with_peft(fresh(path), batches, RANK, scale)


def with_loraga(path: Path, batches, scale: float) -> PeftModel:
    model = get_peft_model(fresh(path), lora(RANK))
    loraga.initialize(model, batches, loss=lambda m, b: scale * m(**b).loss, progress=False)
    return model


def factors_of(model: PeftModel) -> dict[str, tuple[Factors, float]]:
    return {
        name: (
            Factors(A=layer.lora_A["default"].weight.detach(), B=layer.lora_B["default"].weight.detach()),
            layer.scaling["default"],
        )
        for name, layer in lora_layers(model, "default").items()
    }


def cosines(model: PeftModel, exact: dict[str, loraga.LowRankGradient]) -> list[float]:
    """Cosine of each layer's first SGD step with the exact gradient step."""
    return [first_step(exact[name], factors, eta).cosine for name, (factors, eta) in factors_of(model).items()]


def update_norm(model: PeftModel, exact: dict[str, loraga.LowRankGradient]) -> float:
    """How much longer than G, in the median layer, the first step is."""
    return statistics.median(
        first_step(exact[name], factors, eta).relative_norm for name, (factors, eta) in factors_of(model).items()
    )


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def logits(model, batch) -> torch.Tensor:
    return model(input_ids=batch["input_ids"]).logits


def measure(name: str, start, path: Path, batches, exact, base_logits: torch.Tensor) -> dict[str, object]:
    norms = {}
    for scale in LOSS_SCALES:
        model = start(path, batches, scale)
        norms[scale] = update_norm(model, exact)
        if scale != 1.0:
            continue
        found = cosines(model, exact)
        at_start = difference(logits(model.eval(), batches[0]), base_logits)
        with model.disable_adapter():
            disabled = difference(logits(model, batches[0]), base_logits)
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory)
            reloaded = difference(
                logits(PeftModel.from_pretrained(fresh(path), directory).eval(), batches[0]), logits(model, batches[0])
            )
    row = {
        "cosine_median": statistics.median(found),
        "cosine_worst": min(found),
        "step_length_at_loss_times_1e-3_1_1e3": [norms[scale] for scale in LOSS_SCALES],
        "logits_at_start": at_start,
        "logits_under_disable_adapter": disabled,
        "logits_after_save_pretrained_and_load_on_the_original_base": reloaded,
    }
    print(name, json.dumps(row, indent=1), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("~/.cache/loraga/smollm2-135m-instruct").expanduser())
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    batches = text_batches(arguments.data, tokenizer, arguments.batches, arguments.rows, arguments.length)
    model = fresh(arguments.model)
    base_logits = logits(model, batches[0])
    exact = {
        name: loraga.gradient.factor_matrix(gradient, 1.0)
        for name, gradient in autograd_gradients(model, batches).items()
    }
    del model
    rows = {
        name: measure(name, start, arguments.model, batches, exact, base_logits)
        for name, start in (("peft", with_peft), ("loraga", with_loraga))
    }
    if arguments.output:
        settings = {key: getattr(arguments, key) for key in ("batches", "rows", "length")}
        arguments.output.write_text(
            json.dumps(
                {
                    "settings": {
                        **settings,
                        "r": RANK,
                        "lora_alpha": 16,
                        "use_rslora": True,
                        "target_modules": TARGETS,
                    },
                    **rows,
                },
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
