"""A model as it was, after something that changes it has failed in the middle."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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
    attributes = [vars(module) for module in model.modules()]
    values = [value for each in attributes for value in each.values()]
    dictionaries = [*attributes, *(value for value in values if isinstance(value, dict))]
    lists = [(value, list(value)) for value in values if isinstance(value, list)]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    contents = [(tensor.detach(), tensor.detach().clone()) for tensor in written]
    with same_random_states(), _same_items_on_error(dictionaries):
        try:
            yield
        except BaseException:
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
    with _same_items_on_error([config.__dict__ for config in model.peft_config.values()]):
        yield


@contextmanager
def _same_items_on_error(dictionaries: Iterable[dict[Any, Any]]) -> Iterator[None]:
    """Restores them in place, because objects share them: PEFT's dictionary of configs belongs to three."""
    before = [(each, dict(each)) for each in dictionaries]
    try:
        yield
    except BaseException:
        for each, items in before:
            each.clear()
            each.update(items)
        raise
