"""Gradients on disk: one safetensors file, with what they were made from and a checksum of it all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ._version import __version__
from .checksum import tensor_checksum
from .errors import GradientFileError
from .files import staged_file
from .gradient import LowRankGradient

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

FORMAT = "loraga-gradients-1"
FACTORS = ("U", "S", "Vh")


def save_gradients(
    gradients: Mapping[str, LowRankGradient],
    path: str | os.PathLike[str],
    *,
    model: str = "",
    seed: int | None = None,
) -> None:
    """Writes gradients to a safetensors file; a file there is replaced only by a complete one.

    Args:
        gradients: {layer: gradient}.
        path: the file.
        model: what the gradients were estimated on, for the reader; shapes and layer names are checked when used.
        seed: the seed they were estimated with.

    Raises:
        SaveError: if the file cannot be written.
    """
    target = Path(path)
    tensors = {
        f"{layer}.{factor}": getattr(gradient, factor).detach().cpu().contiguous()
        for layer, gradient in gradients.items()
        for factor in FACTORS
    }
    content = {
        "model": model,
        "seed": seed,
        "layers": {
            layer: {"shape": gradient.shape, "tail": gradient.tail, "loss_terms": gradient.loss_terms}
            for layer, gradient in gradients.items()
        },
        "versions": {
            "loraga": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
    text = json.dumps(content, sort_keys=True)
    metadata = {"format": FORMAT, "content": text, "sha256": tensor_checksum(tensors, text)}
    with staged_file(target) as staged:
        save_file(tensors, staged, metadata=metadata)


def load_gradients(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> dict[str, LowRankGradient]:
    """Reads gradients that `save_gradients` wrote.

    Args:
        path: the file.
        device: where to put the factors.

    Returns:
        Each layer's gradient by its name.

    Raises:
        GradientFileError: if the file is missing, of another kind, truncated, or has a changed bit.
    """
    content, tensors = _read(Path(path))
    gradients = {}
    try:
        for layer, facts in content["layers"].items():
            U, S, Vh = (tensors[f"{layer}.{factor}"].to(device) for factor in FACTORS)
            gradients[layer] = LowRankGradient(
                U=U,
                S=S,
                Vh=Vh,
                tail=float(facts["tail"]),
                loss_terms=float(facts["loss_terms"]),
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise GradientFileError(f"{path} is damaged: {error!r} is missing") from error
    return gradients


def describe_gradients(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a gradients file was made from: model, seed, layers with shapes and loss terms, versions.

    Args:
        path: the file.

    Returns:
        JSON data.

    Raises:
        GradientFileError: as `load_gradients` does.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise GradientFileError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise GradientFileError(f"{path} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise GradientFileError(f"{path} is not a gradients file of this version of loraga")
    text = metadata.get("content", "")
    if metadata.get("sha256") != tensor_checksum(tensors, text):
        raise GradientFileError(f"{path} is damaged: its checksum does not fit its content; estimate it again")
    return json.loads(text), tensors
