"""A second device on a machine that has one: tensors whose numbers lie on the CPU and whose device is another.

As with a GPU, an operation on tensors of both is refused unless it is a copy from one to the other; a tensor of no
dimensions may lie on the CPU. The numbers are those of the CPU, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 1)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class OnSecond(Tensor):
    """A tensor on the second device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnSecond:
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = Tensor._make_wrapper_subclass(cls, values.shape, device=SECOND, **layout)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(function, args, kwargs or {})


class TwoDevices(TorchDispatchMode):
    """While inside, tensors can be made on the second device and copied to it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(function, args, kwargs or {})


def _carried_out(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    seconds = [tensor for tensor in tensors if isinstance(tensor, OnSecond)]
    firsts = [tensor for tensor in tensors if not isinstance(tensor, OnSecond) and tensor.ndim]
    if seconds and firsts and function not in COPIES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found two of them in {function}")
    to = kwargs.get("device")
    plain_args, plain_kwargs = tree_map_only(OnSecond, lambda tensor: tensor.values, (args, kwargs))
    if to is not None:
        plain_kwargs["device"] = FIRST
    found = function(*plain_args, **plain_kwargs)
    if to == SECOND or (to is None and seconds):
        found = tree_map_only(Tensor, OnSecond, found)
        return return_and_correct_aliasing(function, args, kwargs, found)
    return found


def move(module: nn.Module, inputs_follow: bool = True) -> None:
    """Moves a module to the second device; what it is given may follow it there, as accelerate's hooks have it."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(OnSecond(parameter.data), requires_grad=parameter.requires_grad)
                each._parameters[name] = moved
        for name, buffer in each._buffers.items():
            each._buffers[name] = None if buffer is None else OnSecond(buffer)
    if inputs_follow:
        module.register_forward_pre_hook(_follow, with_kwargs=True)


def _follow(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(SECOND), (args, kwargs))
