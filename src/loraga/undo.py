"""A model as it was, after something that changes it has failed in the middle."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from .passes import same_random_states

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from peft import PeftModel
    from torch import Tensor, nn


@contextmanager
def as_it_was_on_error(model: nn.Module, written: Iterable[Tensor] = ()) -> Iterator[None]:
    """Puts modules, their attributes and `requires_grad` back if the block fails; random states in any case.

    Args:
        model: any module.
        written: parameters and buffers that the block may write into, which are copied for the time.

    Yields:
        Nothing.
    """
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    # restored in place, because objects share them: PEFT's dictionary of configs belongs to three
    dictionaries = [
        (value, dict(value)) for _, values in attributes for value in values.values() if isinstance(value, dict)
    ]
    lists = [(value, list(value)) for _, values in attributes for value in values.values() if isinstance(value, list)]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    contents = [(tensor.detach(), tensor.detach().clone()) for tensor in written]
    try:
        with same_random_states():
            yield
    except BaseException:
        for module, values in attributes:
            module.__dict__.clear()
            module.__dict__.update(values)
        for dictionary, items in dictionaries:
            dictionary.clear()
            dictionary.update(items)
        for each, entries in lists:
            each[:] = entries
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
        with torch.no_grad():
            for tensor, content in contents:
                tensor.copy_(content)
        raise


@contextmanager
def same_configs_on_error(model: PeftModel) -> Iterator[None]:
    """Puts the adapters' configs back if the block fails: PEFT changes them while it saves them.

    Args:
        model: the model.

    Yields:
        Nothing.
    """
    before = [(config, dict(vars(config))) for config in model.peft_config.values()]
    try:
        yield
    except BaseException:
        for config, values in before:
            config.__dict__.update(values)
        raise
