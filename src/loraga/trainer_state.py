"""A trainer's and its model's state around work that training is not to notice, and its exact return."""

from __future__ import annotations

import copy
import random
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from .layers import adapter_switches
from .passes import same_random_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

DATA = ("train_dataset", "eval_dataset")  # may be long lists, which nothing here writes into
MODULE_FLAGS = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
MODEL_HOOKS = ("_require_grads_hook", "_require_grads_hooks")  # what switching checkpointing on leaves behind


@contextmanager
def same_trainer(trainer: Any) -> Iterator[None]:
    """Puts everything back that reading batches and computing losses changes in a trainer.

    That is its attributes with the lists and dicts in them (metrics, logs, rollouts, prepared dataloaders), its
    counters, the collator, the data set's own attributes, generators, and the random states.

    Args:
        trainer: a trainer of transformers or TRL.

    Yields:
        Nothing.
    """
    memory = _Memory()
    memory.keep(trainer, without=DATA)
    for part in (trainer.state, trainer.control, trainer.accelerator, trainer.accelerator.gradient_state):
        memory.keep(part)
    memory.keep(trainer.data_collator)
    memory.keep(trainer.train_dataset, nested=False)
    try:
        with same_random_states():
            yield
    finally:
        memory.restore()


@contextmanager
def same_loader(loader: Any) -> Iterator[None]:
    """Puts a dataloader back that may be the one that training will use: its samplers, generators and counters.

    Args:
        loader: a dataloader, accelerate's wrapper of one, or any iterable.

    Yields:
        Nothing.
    """
    memory, parts = _Memory(), [loader]
    for part in parts:  # grows while it is read
        attributes = getattr(part, "__dict__", {})
        nested = (attributes.get(name) for name in ("base_dataloader", "batch_sampler", "sampler"))
        parts += [each for each in nested if each is not None and not any(each is known for known in parts)]
        memory.keep(part, nested=False)
    try:
        yield
    finally:
        memory.restore()


@contextmanager
def same_model(model: nn.Module) -> Iterator[None]:
    """Puts back how a model runs: modes, checkpointing, hooks, `requires_grad`, which adapter is on.

    A trainer's loss switches adapters for its reference, and PEFT's switches set `requires_grad` anew.

    Args:
        model: the model.

    Yields:
        Nothing.
    """
    memory = _Memory()
    for module in model.modules():
        memory.keep(module, only=MODULE_FLAGS)
        memory.keep_contents(module._forward_hooks)
    for switch in adapter_switches(model):
        memory.keep(switch, only=("_disable_adapters", "_active_adapter"))
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    memory.keep(base, only=MODEL_HOOKS)
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        memory.restore()
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)


@contextmanager
def checkpointing_as_in_training(trainer: Any, model: nn.Module) -> Iterator[None]:
    """Switches checkpointing on that the trainer's arguments ask for and only `.train()` would switch on.

    Args:
        trainer: the trainer.
        model: its model.

    Yields:
        Nothing.
    """
    names = ("activation_checkpointing", "gradient_checkpointing")  # the newer name, and the older one
    wanted = any(getattr(trainer.args, name, None) for name in names)
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if not wanted or any(layer.gradient_checkpointing for layer in layers):
        yield
        return
    with same_model(model):
        for layer in layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        yield


class _Memory:
    """What objects' attributes, containers and generators were, so that they can be so again, in place."""

    def __init__(self) -> None:
        self._restores: list[Callable[[], object]] = []
        self._seen: dict[int, Any] = {}  # the objects themselves, so that no id is used again

    def keep(self, part: Any, *, only: Iterable[str] = (), without: Iterable[str] = (), nested: bool = True) -> None:
        """Remembers an object's attributes: all, or some; and what is in the containers among them."""
        attributes = getattr(part, "__dict__", None)
        if attributes is None:
            return
        names = set(only)
        before = {name: value for name, value in attributes.items() if not names or name in names}
        self._restores.append(partial(_restore_attributes, attributes, before, names))
        for name, value in before.items():
            if name not in without:
                self._keep_value(value, nested)

    def keep_contents(self, container: Any) -> None:
        """Remembers what is in a dict, list, set or deque, and in those within."""
        if id(container) in self._seen:
            return
        self._seen[id(container)] = container
        contents = copy.copy(container)
        self._restores.append(partial(_restore_contents, container, contents))
        for value in contents.values() if isinstance(container, dict) else contents:
            self._keep_value(value, nested=True)

    def _keep_value(self, value: Any, nested: bool) -> None:
        if isinstance(value, torch.Generator):
            self._restores.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._restores.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            self._restores.append(partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif nested and isinstance(value, (dict, list, set, deque)):
            self.keep_contents(value)

    def restore(self) -> None:
        """Puts everything back."""
        for restore in reversed(self._restores):
            restore()


def _restore_attributes(attributes: dict[str, Any], before: dict[str, Any], names: set[str]) -> None:
    for name in names or list(attributes):
        if name not in before:
            attributes.pop(name, None)
    attributes.update(before)


def _restore_contents(container: Any, contents: Any) -> None:
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(contents)
    else:
        container.update(contents)
