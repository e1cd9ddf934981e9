"""Encoder-decoders of text."""

from __future__ import annotations

from typing import Any

from .decoders import SPECIAL
from .kinds import VOCABULARY, Architecture, sequence_to_sequence_batch

T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
ENCODER_AND_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "dropout": 0.1,
}
BART = {
    **ENCODER_AND_DECODER,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **SPECIAL,
}


def bart(model: str, **config: Any) -> Architecture:
    return Architecture(model, {**BART, **config}, sequence_to_sequence_batch)


ARCHITECTURES = {
    "T5": Architecture("T5ForConditionalGeneration", T5, sequence_to_sequence_batch),
    "BART": bart("BartForConditionalGeneration"),
    "mBART": bart("MBartForConditionalGeneration"),
    "Marian": bart("MarianMTModel"),
    "Pegasus": bart("PegasusForConditionalGeneration"),
}
