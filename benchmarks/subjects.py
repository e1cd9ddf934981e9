"""The model, the text and the rival starts that the benchmarks share."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import EvaConfig, LoraConfig, LoraGAConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora import preprocess_loraga
from transformers import AutoModelForCausalLM, AutoTokenizer

import loraga
from residual import text_batches

Batch = dict[str, torch.Tensor]
# every linear layer but the output embeddings; PEFT's lora_ga does not know "all-linear"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Subject:
    """A model on disk and micro-batches for it."""

    path: Path
    batches: list[Batch]

    def base(self) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)

    def adapted(self, rank: int, **settings: object) -> PeftModel:
        return get_peft_model(self.base(), lora(rank, **settings))


def lora(rank: int, **settings: object) -> LoraConfig:
    return LoraConfig(**{"r": rank, "lora_alpha": 16, "use_rslora": True, "target_modules": TARGETS, **settings})


def parser(description: str | None) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", type=Path, required=True, help="JSON lines with question and answer")
    result.add_argument("--model", type=Path, default=Path("~/.cache/loraga/smollm2-135m-instruct").expanduser())
    result.add_argument("--output", type=Path, help="folder for the JSON file")
    return result


def subject(arguments: argparse.Namespace, count: int, rows: int, length: int) -> Subject:
    warnings.simplefilter("ignore")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    return Subject(arguments.model, text_batches(arguments.data, tokenizer, count, rows, length))


def forward_and_backward(model: torch.nn.Module, batches: list[Batch]) -> None:
    """The yardstick: what a LoRA training step does on the same micro-batches, but for the optimizer."""
    model.train()
    for batch in batches:
        model(**batch).loss.backward()
    model.zero_grad()


def start_with_loraga(model: PeftModel, batches: list[Batch], **settings: object) -> None:
    loraga.initialize(model, batches, num_batches=None, progress=False, **settings)


def start_with_peft(model: torch.nn.Module, batches: list[Batch], rank: int, loss_scale: float = 1.0) -> PeftModel:
    """PEFT's documented way: a callback that runs the backward passes, then get_peft_model."""
    config = lora(rank, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())

    def train_step() -> None:
        for batch in batches:
            (loss_scale * model(**batch).loss).backward()

    preprocess_loraga(model, config, train_step)
    return get_peft_model(model, config)


def start_with_eva(model: torch.nn.Module, batches: list[Batch], rank: int) -> PeftModel:
    """PEFT's EVA: incremental singular value decompositions of the layers' inputs, until they settle."""
    adapted = get_peft_model(
        model, lora(rank, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)), low_cpu_mem_usage=True
    )
    initialize_lora_eva_weights(adapted, batches, show_progress_bar=False)
    return adapted
