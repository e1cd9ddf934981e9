"""Tiny random models of several architectures, with batches that fit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY = 96


@dataclass(frozen=True)
class Architecture:
    """How to make a tiny model of one kind, and a batch for it."""

    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], dict[str, Tensor]]
    targets: str | list[str] = "all-linear"
    fan_in_fan_out: bool = False


def tokens(generator: torch.Generator, rows: int = 3, length: int = 14) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def causal_batch(generator: torch.Generator) -> dict[str, Tensor]:
    """A batch with padding and a masked prompt whose length differs between batches."""
    ids = tokens(generator)
    labels = ids.clone()
    labels[:, : int(torch.randint(1, 9, (), generator=generator))] = -100
    mask = torch.ones_like(ids)
    mask[0, 10:], labels[0, 10:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def sequence_to_sequence_batch(generator: torch.Generator) -> dict[str, Tensor]:
    labels = tokens(generator, length=int(torch.randint(2, 8, (), generator=generator)))
    labels[0, -1] = -100
    return {"input_ids": tokens(generator), "labels": labels}


def masked_batch(generator: torch.Generator) -> dict[str, Tensor]:
    ids = tokens(generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.4, ids, -100)
    labels[0, 3] = ids[0, 3]
    return {"input_ids": ids, "labels": labels}


def image_batch(generator: torch.Generator) -> dict[str, Tensor]:
    rows = int(torch.randint(2, 5, (), generator=generator))
    return {
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
        "labels": torch.randint(0, 5, (rows,), generator=generator),
    }


def decoder(name: str, **extra: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = getattr(transformers, f"{name}Config")(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=40,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            **extra,
        )
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return build


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def opt() -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=40,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        dropout=0.3,
        attention_dropout=0.2,
    )
    return transformers.OPTForCausalLM(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    return transformers.T5ForConditionalGeneration(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=64,
    )
    return transformers.BertForMaskedLM(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config)


ARCHITECTURES = {
    "Llama": Architecture(decoder("Llama"), causal_batch),
    "Qwen2": Architecture(decoder("Qwen2"), causal_batch),
    "Gemma": Architecture(decoder("Gemma", head_dim=8), causal_batch),
    "GPT-2": Architecture(gpt2, causal_batch, ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    "OPT": Architecture(opt, causal_batch),
    "T5": Architecture(t5, sequence_to_sequence_batch),
    "BERT": Architecture(bert, masked_batch, ["query", "key", "value", "dense"]),
    "ViT": Architecture(vit, image_batch),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A tiny model with its own random weights, in float32 and train mode off, as from_pretrained gives it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ARCHITECTURES[name].build().eval()
        for parameter in model.parameters():  # biases and norms start at constants, which would hide mistakes
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return model


def batches(name: str, count: int = 3, seed: int = 1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [ARCHITECTURES[name].batch(generator) for _ in range(count)]


def with_lora(model: nn.Module, name: str = "Llama", **settings: Any) -> Any:
    """Wraps a model in a LoRA adapter of rank 2 and LoRA-GA's scaling, unless told otherwise."""
    defaults = {
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": ARCHITECTURES[name].targets,
        "fan_in_fan_out": ARCHITECTURES[name].fan_in_fan_out,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return get_peft_model(model, LoraConfig(**{**defaults, **settings}))


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def relative_difference(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().float(), b.detach().float()
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def train(model: nn.Module, data: list[dict[str, Tensor]], steps: int = 4, rate: float = 1e-2) -> None:
    """A few AdamW steps in eval mode, so that two copies of a model train alike."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(steps):
        model(**data[step % len(data)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def autograd_gradients(model: nn.Module, data: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """Weighted mean of dL/dW over batches by plain autograd on the weights, (d_out, d_in) each."""
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, transformers.pytorch_utils.Conv1D))
    }
    for module in linear.values():
        module.weight.requires_grad_(True)
    for batch, weight in zip(data, weights, strict=True):
        (model(**batch).loss * (weight / sum(weights))).backward()
    gradients = {}
    for name, module in linear.items():
        if module.weight.grad is not None:
            gradient = module.weight.grad.clone()
            gradients[name] = gradient if isinstance(module, nn.Linear) else gradient.T
    model.zero_grad(set_to_none=True)
    return gradients
