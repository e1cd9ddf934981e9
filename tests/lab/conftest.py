"""A tiny random language model and a tokenizer of single bytes, in the place of SmolLM2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loraga.lab import smollm2

END = "<|im_end|>"


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
    tiny_model().save_pretrained(folder / "cache" / smollm2.NAME)
    patch.setenv("LORAGA_CACHE", str(folder / "cache"))
    patch.setattr(smollm2, "load", lambda: (tiny_model(), byte_tokenizer()))
