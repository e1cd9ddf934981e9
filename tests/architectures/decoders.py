"""Decoders of text: causal language models, and one with a classification head."""

from __future__ import annotations

from typing import Any

from .kinds import CLASSES, VOCABULARY, Architecture, causal_batch, text_class_batch

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    **SPECIAL,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}


def decoder(name: str, **config: Any) -> Architecture:
    return Architecture(f"{name}ForCausalLM", {**GROUPED, **config}, causal_batch)


ARCHITECTURES = {
    "Llama": decoder("Llama", num_hidden_layers=2),
    "Llama, classification": Architecture(
        "LlamaForSequenceClassification",
        {**GROUPED, "num_labels": CLASSES},
        text_class_batch,
        lora={"task_type": "SEQ_CLS"},
    ),
    "Mistral": decoder("Mistral", sliding_window=4),
    "Qwen2": decoder("Qwen2", num_hidden_layers=2),
    "Qwen3": decoder("Qwen3", head_dim=8),
    "Gemma": decoder("Gemma", num_hidden_layers=2, head_dim=8),
    "Gemma 2": decoder("Gemma2", head_dim=8, num_hidden_layers=2, sliding_window=4),
    "Gemma 3": decoder("Gemma3", head_dim=8, num_hidden_layers=2, sliding_window=4),
    "Phi": Architecture("PhiForCausalLM", {**TEXT, "embd_pdrop": 0.1}, causal_batch),
    "Phi-3": decoder("Phi3", resid_pdrop=0.1),
    "GPT-2": Architecture(
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **SPECIAL},
        causal_batch,
        ["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
    ),
    "GPT-J": Architecture(
        "GPTJForCausalLM",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
        | SPECIAL,
        causal_batch,
    ),
    "GPT-NeoX": Architecture("GPTNeoXForCausalLM", {**TEXT, "hidden_dropout": 0.1}, causal_batch),
    "OPT": Architecture(
        "OPTForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 40,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 64,
            "dropout": 0.3,
            "attention_dropout": 0.2,
        },
        causal_batch,
    ),
    "BLOOM": Architecture(
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 1, "n_head": 4, "hidden_dropout": 0.1, **SPECIAL},
        causal_batch,
    ),
    "Falcon": Architecture(
        "FalconForCausalLM", {**TEXT, "new_decoder_architecture": True, "num_kv_heads": 2}, causal_batch
    ),
    "MPT": Architecture(
        "MptForCausalLM",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64, **SPECIAL},
        causal_batch,
    ),
    "StableLM": decoder("StableLm", use_parallel_residual=True),
    "Cohere": decoder("Cohere", logit_scale=0.5),
    "Granite": decoder("Granite", logits_scaling=4.0, residual_multiplier=0.5),
    "OLMo 2": decoder("Olmo2"),
    "SmolLM3": decoder("SmolLM3", num_hidden_layers=2, no_rope_layers=[1, 0]),
    "StarCoder 2": decoder("Starcoder2"),
    "GLM-4": decoder("Glm4", head_dim=8),
}
