"""Capture of (layer, X, dY): what one backward pass tells about a linear layer, without any weight gradient.

X is the layer's input and dY the gradient at its output, so that dL/dW = dY^T X. The weight never needs
`requires_grad`, so 4-bit, 8-bit, bf16 and sharded weights work alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import GradientError
from .quantization import is_hqq

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Receiver = Callable[[str, Tensor, Tensor], None]
"""Called as receiver(layer, X (tokens, d_in), dY (tokens, d_out)), once a call of the layer, within backward."""


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """Shape (d_out, d_in) of a linear layer's weight in the paper's orientation, quantised or not.

    Args:
        layer: `nn.Linear`, a subclass (bitsandbytes), HQQ's, or transformers' `Conv1D`, which stores the transpose.

    Returns:
        d_out and d_in.

    Raises:
        GradientError: if the layer is of another kind.
    """
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, Conv1D):
        return layer.nf, layer.nx
    if is_hqq(layer):
        return int(cast("Any", layer).out_features), int(cast("Any", layer).in_features)
    raise GradientError(f"a {type(layer).__name__} is not a linear layer (nn.Linear or Conv1D)")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a layer that `capture` knows: y = W x + b with one weight matrix."""
    return isinstance(module, (nn.Linear, Conv1D)) or is_hqq(module)


@contextmanager
def capture(model: nn.Module, layers: Mapping[str, nn.Module], receiver: Receiver) -> Iterator[CallCounter]:
    """Reports X and dY of every call of the given layers while the block runs.

    Args:
        model: the model that holds the layers.
        layers: the linear layers to watch, by name.
        receiver: called within backward for each call of a layer that the loss depends on.

    Yields:
        A counter of the calls that the forward pass made of each layer.
    """
    counter = CallCounter()
    handles: list[RemovableHandle] = []
    try:
        embeddings = input_embeddings(model)
        if embeddings is not None:
            handles.append(embeddings.register_forward_hook(_require_output_gradient))
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(_hook(name, receiver, counter), with_kwargs=True))
        yield counter
    finally:
        for handle in handles:
            handle.remove()


class CallCounter:
    """Counts the calls of each layer in a forward pass; calls that checkpointing repeats in backward do not count."""

    def __init__(self) -> None:
        self.saw_half = False  # whether a layer computed in float16, in this pass or an earlier one
        self._calls: dict[str, int] = {}
        self._counting = True

    def start_forward(self) -> None:
        """Forgets the calls of the pass before."""
        self._calls.clear()
        self._counting = True

    def start_backward(self) -> None:
        """Ends the counting."""
        self._counting = False

    def count(self, name: str, layer: nn.Module, output: Tensor) -> None:
        """Notes one call of a layer, and whether it computes in float16, as 4-bit layers may between float32 ones."""
        self.saw_half |= torch.float16 in (output.dtype, getattr(layer, "compute_dtype", None))
        if self._counting:
            self._calls[name] = self._calls.get(name, 0) + 1

    def calls(self, layer: str) -> int:
        """Number of calls of a layer in the forward pass."""
        return self._calls.get(layer, 0)


class _Tap(torch.autograd.Function):
    """The identity on a layer's output, which hands X and dY to the receiver in backward.

    X is saved by `save_for_backward`, not in a closure, so that checkpointing drops and recomputes it.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, name: str, receiver: Receiver) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.name, ctx.receiver = name, receiver
        return output.data  # the same memory, but no view: an activation may write in place into what it gets

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        inputs = inputs.to(output_gradient.device)
        ctx.receiver(
            ctx.name,
            inputs.reshape(-1, inputs.shape[-1]),
            output_gradient.reshape(-1, output_gradient.shape[-1]),
        )
        return output_gradient, None, None, None


def _hook(name: str, receiver: Receiver, counter: CallCounter) -> Callable[..., Tensor]:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        counter.count(name, layer, output)
        if not torch.is_grad_enabled():
            return output
        inputs = args[0] if args else next(iter(kwargs.values()))
        if not output.requires_grad:  # nothing before this layer asks for a gradient: the graph starts here
            output = output.detach().requires_grad_(True)
        return _Tap.apply(output, inputs.detach(), name, receiver)

    return hook


def _require_output_gradient(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Starts the graph at the embeddings: reentrant checkpointing needs an input that requires a gradient."""
    if not (torch.is_grad_enabled() and isinstance(output, Tensor) and output.is_floating_point()):
        return output
    if output.requires_grad:
        return output
    return output.detach().requires_grad_(True).clone()  # a copy, because a leaf cannot be written in place


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """The module that a transformers model names as its input embeddings; None where it has none."""
    get = getattr(model, "get_input_embeddings", None)
    if get is None:
        return None
    try:
        embeddings = get()
    except (NotImplementedError, AttributeError):  # models without embeddings (some speech and vision models)
        return None
    return embeddings if isinstance(embeddings, nn.Module) else None
