"""Tiny random models of several architectures, with batches that fit them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.architectures import ARCHITECTURES

WORKING = [name for name, architecture in ARCHITECTURES.items() if architecture.refusal is None]
REFUSED = [name for name, architecture in ARCHITECTURES.items() if architecture.refusal is not None]


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
        **ARCHITECTURES[name].lora,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return get_peft_model(model, LoraConfig(**{**defaults, **settings}))


def logits(model: nn.Module, batch: dict[str, Tensor], name: str = "Llama") -> Tensor:
    """The model's main output, which few architectures call otherwise than `logits`."""
    with torch.no_grad():
        return model(**batch)[ARCHITECTURES[name].output]


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
    for module in linear.values():  # a new parameter: a tied one would collect the embeddings' gradient too
        module.weight = nn.Parameter(module.weight.detach().clone())
    for batch, weight in zip(data, weights, strict=True):
        (model(**batch).loss * (weight / sum(weights))).backward()
    gradients = {}
    for name, module in linear.items():
        if module.weight.grad is not None:
            gradient = module.weight.grad.clone()
            gradients[name] = gradient if isinstance(module, nn.Linear) else gradient.T
    model.zero_grad(set_to_none=True)
    return gradients
