"""A tiny random language model and a tokenizer of single bytes, in the place of SmolLM2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from loraga.lab import smollm2
from loraga.lab.recipe import Recipe

END = "<|im_end|>"
SUMS = [(number, 7 * number % 50) for number in range(11, 35)]
ROWS = [{"prompt": f"{a} + {b} =", "target": str(a + b) * (1 + a % 3)} for a, b in SUMS]  # 2, 4 or 6 characters


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=256,
            eos_token_id=257,
            pad_token_id=257,
            initializer_range=0.2,
        )
    ).eval()


def tiny_t5(seed: int = 0) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=258,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=256,
        pad_token_id=257,
        eos_token_id=257,
    )
    return T5ForConditionalGeneration(config).eval()


def saved(model: Any, folder: Path) -> Path:
    """The folder, with the model and the tokenizer of single bytes in it."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_model(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tiny_t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_t5(), tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 sums as JSON lines, with targets of 2, 4 and 6 characters."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture(scope="session")
def recipe(tiny_folder: Path, rows_file: Path) -> Callable[..., Recipe]:
    """A function of keys that makes a recipe for the tiny model and the sums."""

    def make(**keys: Any) -> Recipe:
        own = {"model": str(tiny_folder), "data": str(rows_file), "prompt": "prompt", "target": "target"}
        small = {"template": "none", "rank": 4, "per_device_eval_batch_size": 4, "max_new_tokens": 8}
        return Recipe(**{**own, **small, **keys})

    return make


class Told:
    """A Progress that keeps what it is told.

    Attributes:
        begun: (what, total, done) of each part.
        work: what was done, in order.
    """

    def __init__(self) -> None:
        self.begun: list[tuple[str, float, float]] = []
        self.work: list[float] = []

    def begin(self, what: str, total: float, done: float) -> None:
        self.begun.append((what, total, done))

    def advance(self, work: float, note: str) -> None:
        self.work.append(work)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture
def tiny_smollm2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_tiny_model(monkeypatch, tmp_path)


def use_tiny_model(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets the lab load the tiny model, new at each call, where it asks for SmolLM2."""
    saved(tiny_model(), folder / "cache" / smollm2.NAME)
    patch.setenv("LORAGA_CACHE", str(folder / "cache"))
