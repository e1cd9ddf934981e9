"""The ways to fine-tune that are compared: each puts an adapter on a base model, ready to train.

A method is one function (model, batches, setting, seed) -> Started and one line in METHODS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from loraga import initialize

Batches = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Adapter:
    """What the methods have in common: all linear layers but the head, as in the paper."""

    rank: int = 8
    alpha: int = 16
    gamma: float = 4096.0  # of LoRA-GA


@dataclass(frozen=True)
class Started:
    """A model with a fresh adapter, how long its start took, and what it says of itself in total."""

    model: Any
    seconds: float
    summary: dict[str, Any] | None = None


def lora(model: Any, batches: Batches, adapter: Adapter, seed: int) -> Started:
    """LoRA as PEFT starts it by default: A from U(+-sqrt(1/d_in)), B zero, eta = alpha / r. No batch is looked at."""
    began = time.perf_counter()
    return Started(_with_lora(model, adapter, seed, use_rslora=False), time.perf_counter() - began)


def lora_ga(model: Any, batches: Batches, adapter: Adapter, seed: int) -> Started:
    """LoRA-GA: A and B from the gradient of the batches, eta = alpha / sqrt(r)."""
    began = time.perf_counter()
    peft_model = _with_lora(model, adapter, seed, use_rslora=True)
    report = initialize(peft_model, batches, gamma=adapter.gamma, num_batches=None, seed=seed, progress=False)
    totals = {"loss_terms": report.loss_terms, "coverage": report.coverage, "cosine": report.cosine}
    return Started(peft_model, time.perf_counter() - began, totals)


@dataclass(frozen=True)
class Method:
    """A way to fine-tune: how tables call it, the function that starts it, and whether that looks at batches."""

    title: str
    start: Callable[[Any, Batches, Adapter, int], Started]
    uses_batches: bool


METHODS = {
    "lora": Method("LoRA", lora, uses_batches=False),
    "lora_ga": Method("LoRA-GA", lora_ga, uses_batches=True),
}


def _with_lora(model: Any, adapter: Adapter, seed: int, *, use_rslora: bool) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(
            model,
            LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha,
                use_rslora=use_rslora,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
