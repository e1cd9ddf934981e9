"""All that a model is, as values that can be compared: every attribute of every module, and the random states."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import NoneType
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig

PLAIN = (bool, int, float, str, bytes, NoneType, torch.dtype, torch.device)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Weights, buffers, requires_grad, grad, hooks, modes, dropout rates, configs, adapters and their switches."""
    facts = {
        f"{name}.{attribute}": _described(value)
        for name, module in model.named_modules(remove_duplicate=False)
        for attribute, value in {**vars(module), "__class__": type(module)}.items()
    }
    facts["hooks of all modules"] = _described(vars(torch.nn.modules.module)["_global_forward_hooks"])
    facts["random states"] = (
        random.getstate(),
        _described(np.random.get_state()),  # noqa: NPY002  # the global state
        torch.get_rng_state().numpy().tobytes(),
        torch.is_grad_enabled(),
    )
    return facts


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of what is not as it was."""
    return sorted(name for name in {**before, **after} if before.get(name, "-") != after.get(name, "-"))


def _described(value: Any) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        content = value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        same = id(value) if isinstance(value, nn.Parameter) else None  # an optimizer made before holds it
        grad = None if value.grad is None else (id(value.grad), _described(value.grad))
        return same, value.dtype, tuple(value.shape), value.requires_grad, content, grad
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, Mapping):
        return [(key, _described(each)) for key, each in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return [_described(each) for each in value]
    if isinstance(value, (PeftConfig, PretrainedConfig, GenerationConfig)):
        return id(value), _described(vars(value))
    return type(value), id(value)
