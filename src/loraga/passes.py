"""The state a model is in while gradients are estimated on it, and its exact return."""

from __future__ import annotations

import random
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def gradient_pass(model: nn.Module, trainable: bool = False) -> Iterator[None]:
    """Prepares a model for passes that leave no trace: no dropout, no cache, checkpointing as it was.

    Random states, training flags, dropout rates, `requires_grad`, `.grad` and `config.use_cache` come back also after
    an exception or Ctrl-C.

    Args:
        model: any module.
        trainable: keep the parameters' `requires_grad`; otherwise all are frozen for the pass.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(same_random_states())
        stack.enter_context(_same_gradients(model))
        if not trainable:
            stack.enter_context(_frozen(model))
        stack.enter_context(_without_dropout(model))
        stack.enter_context(_without_cache(model))
        yield


@contextmanager
def same_random_states() -> Iterator[None]:
    """Puts the random states of Python, NumPy and torch (all devices) back when the block ends."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the caller's global state is kept)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def _same_gradients(model: nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None  # else backward would add to the caller's tensor in place
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    before = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Eval mode, except on what must train to work: layers that checkpoint, and 4-bit layers.

    Transformers checkpoints only where `self.training`, and some of its layers (OPT, BART) apply float dropout rates
    of their own on the same flag; bitsandbytes repacks a 4-bit weight for inference where it does not train.
    """
    modes = [(module, module.training) for module in model.modules()]
    rates: list[tuple[Any, str, float]] = []
    try:
        model.eval()
        for module, _ in modes:
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
                for holder in (module, getattr(module, "config", None)):  # Falcon's layers read their config's
                    rates += _dropout_rates(holder)
            elif type(module).__module__.startswith("bitsandbytes"):
                module.training = True
        for holder, name, _ in rates:
            setattr(holder, name, 0.0)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for holder, name, rate in reversed(rates):
            setattr(holder, name, rate)


def _dropout_rates(holder: Any) -> list[tuple[Any, str, float]]:
    values = vars(holder).items() if holder is not None else ()
    return [(holder, name, value) for name, value in values if isinstance(value, float) and "drop" in name]


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    config: Any = getattr(model, "config", None)
    if config is None or not getattr(config, "use_cache", False):
        yield
        return
    try:
        config.use_cache = False
        yield
    finally:
        config.use_cache = True
