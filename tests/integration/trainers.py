"""The trainers of transformers and TRL that `initialize_trainer` knows: how to make each with a tiny model and data.

An entry of `TRAINERS` is run by every test of a trainer's promises (test_initialize_trainer.py), and on every base
(test_trainers_on_bases.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from tests.architectures import ARCHITECTURES
from tests.models import batches, build, with_lora

WORDS = [f"w{number}" for number in range(90)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
ROWS = 24  # 12 batches

# TRL's default, by the name that transformers uses: newer versions warn of the older one
NEWER = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
CHECKPOINTING_NAME = "activation_checkpointing" if NEWER else "gradient_checkpointing"
CHECKPOINTING = {CHECKPOINTING_NAME: True, f"{CHECKPOINTING_NAME}_kwargs": {"use_reentrant": False}}

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class TrainerKind:
    """One kind of trainer, with a tiny base model and data that fit it."""

    trainer: type
    arguments: type
    rows: Callable[[], Any]  # its train_dataset
    terms: Callable[[Batch], float]  # what a batch counts by, from a batch as `compute_loss` gets it
    base: Callable[[], nn.Module] = lambda: build("Llama")
    probe: str = "Llama"  # the architecture whose batches it takes
    lora: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # of its arguments
    is_trls: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)  # of the trainer itself
    has_reference: bool = False

    def peft_config(self, **settings: Any) -> LoraConfig:
        """Rank 2 with LoRA-GA's scaling."""
        defaults = {"r": 2, "lora_alpha": 4, "use_rslora": True, "target_modules": "all-linear", "lora_dropout": 0.1}
        return LoraConfig(**{**defaults, **self.lora, **settings})

    def peft_model(self, **settings: Any) -> Any:
        """A fresh base with an untrained adapter."""
        return with_lora(self.base(), **{"lora_dropout": 0.1, **self.lora, **settings})

    def probe_batch(self) -> dict[str, Any]:
        """A batch to compare logits on."""
        batch = batches(self.probe, 1, 9)[0]
        return batch if self.probe == "T5" else {key: value for key, value in batch.items() if key != "labels"}

    def make(self, output: Any, model: Any = None, *, callbacks: Any = (), kind: Any = None, **settings: Any) -> Any:
        """A trainer of a model: a PeftModel, by default a fresh one; or a base model, with `peft_config`.

        Further keywords are those of the trainer's arguments, but train_dataset, data_collator, compute_loss_func and
        peft_config, which are the trainer's own.
        """
        own = ("train_dataset", "data_collator", "compute_loss_func", "peft_config")
        given = {name: settings.pop(name) for name in own if name in settings}
        return (kind or self.trainer)(
            model=self.peft_model() if model is None else model,
            args=self.arguments(
                **arguments(output, **{**(CHECKPOINTING if self.is_trls else {}), **self.settings, **settings})
            ),
            callbacks=list(callbacks),
            **{"train_dataset": self.rows(), **self.extra, **given},
        )


def arguments(output: Any, **settings: Any) -> dict[str, Any]:
    defaults = {
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "seed": 3,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return {"output_dir": str(output), **defaults, **settings}


def reference_log_probabilities(trainer: Any, model: Any, inputs: Any) -> tuple[Tensor, ...]:
    """What DPO's and KTO's trainers compute of their reference, by the names that versions of TRL have for it."""
    name = "compute_ref_log_probs" if hasattr(trainer, "compute_ref_log_probs") else "compute_reference_log_probs"
    method = getattr(trainer, name)
    takes_model = "model" in inspect.signature(method).parameters
    return method(model, inputs) if takes_model else method(inputs)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def text(number: int, length: int) -> str:
    return " ".join(WORDS[(7 * number + 3 * place + number * place) % len(WORDS)] for place in range(length))


def token_rows() -> list[dict[str, Tensor]]:
    """Rows of one length, of which different parts are labelled: batches differ in their loss terms."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, 96, (ROWS, 12), generator=generator)
    labels = tokens.clone()
    for number, row in enumerate(labels):
        row[: 1 + number % 9] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]


def class_rows() -> list[dict[str, Tensor]]:
    return [{"input_ids": row["input_ids"], "labels": torch.tensor(n % 5)} for n, row in enumerate(token_rows())]


def completion_rows() -> Dataset:
    return Dataset.from_list([{"prompt": text(n, 4), "completion": " " + text(n + 1, 2 + n % 7)} for n in range(ROWS)])


def pair_rows() -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": text(n, 3), "chosen": " " + text(n + 1, 2 + n % 5), "rejected": " " + text(n + 2, 1 + n % 4)}
            for n in range(ROWS)
        ]
    )


def judged_rows() -> Dataset:
    return Dataset.from_list(
        [{"prompt": text(n, 3), "completion": " " + text(n + 1, 2 + n % 5), "label": n % 3 > 0} for n in range(ROWS)]
    )


def prompt_rows() -> Dataset:
    return Dataset.from_list([{"prompt": text(n, 2 + n % 3)} for n in range(ROWS)])


def number_reward(completions: list[str], **_: Any) -> list[float]:
    """Something that tells random completions apart."""
    return [sum(int(word[1:]) for word in completion.split() if word[1:].isdigit()) / 50 for completion in completions]


def one_score() -> nn.Module:
    """A Llama with one number as its output."""
    config = LlamaConfig(**{**ARCHITECTURES["Llama"].config, "num_labels": 1})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForSequenceClassification(config).eval()


def talker() -> nn.Module:
    """A Llama many of whose tokens end a completion, so that completions differ in length."""
    model: Any = build("Llama")
    model.generation_config.eos_token_id = [2, *range(4, 30)]
    return model


def shifted(batch: Batch) -> float:
    return float((batch["labels"][:, 1:] != -100).sum())


TOKENIZER = {"processing_class": tokenizer()}

TRAINERS = {
    "Trainer": TrainerKind(Trainer, TrainingArguments, token_rows, shifted, is_trls=False),
    "Trainer, label smoothing": TrainerKind(
        Trainer,
        TrainingArguments,
        token_rows,
        shifted,
        settings={"label_smoothing_factor": 0.2},
        is_trls=False,
    ),
    "Trainer, classification": TrainerKind(
        Trainer,
        TrainingArguments,
        class_rows,
        lambda batch: float(len(batch["labels"])),
        base=lambda: build("Llama, classification"),
        probe="Llama, classification",
        lora={"task_type": "SEQ_CLS"},
        is_trls=False,
    ),
    "Seq2SeqTrainer": TrainerKind(
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        token_rows,
        lambda batch: float((batch["labels"] != -100).sum()),
        base=lambda: build("T5"),
        probe="T5",
        is_trls=False,
    ),
    "SFTTrainer": TrainerKind(SFTTrainer, SFTConfig, completion_rows, shifted, extra=TOKENIZER),
    "SFTTrainer, packed": TrainerKind(
        SFTTrainer,
        SFTConfig,
        completion_rows,
        shifted,
        settings={"packing": True, "packing_strategy": "wrapped", "max_length": 9},
        extra=TOKENIZER,
    ),
    "DPOTrainer": TrainerKind(
        DPOTrainer,
        DPOConfig,
        pair_rows,
        lambda batch: len(batch["input_ids"]) / 2,
        extra=TOKENIZER,
        has_reference=True,
    ),
    "KTOTrainer": TrainerKind(
        KTOTrainer,
        KTOConfig,
        judged_rows,
        lambda batch: float(len(batch["label"])),
        extra=TOKENIZER,
        has_reference=True,
    ),
    "RewardTrainer": TrainerKind(
        RewardTrainer,
        RewardConfig,
        pair_rows,
        lambda batch: len(batch["input_ids"]) / 2,
        base=one_score,
        lora={"task_type": "SEQ_CLS"},
        extra=TOKENIZER,
    ),
    "GRPOTrainer": TrainerKind(
        GRPOTrainer,
        GRPOConfig,
        prompt_rows,
        lambda batch: float(batch["completion_mask"].sum()),
        base=talker,
        settings={
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "steps_per_generation": 2,
            "max_completion_length": 5,
            "beta": 0.1,
            "loss_type": "dapo",
        },
        extra={**TOKENIZER, "reward_funcs": number_reward},
        has_reference=True,
    ),
}
