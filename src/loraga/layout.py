"""How an adapter with an offset lies on disk: as a plain LoRA for the original base, of twice the rank.

    in the model   A, B trained and A0, B0 subtracted, rank r, scaling eta
    on disk        [A; A0] and [B, -B0], rank 2r, lora_alpha = eta * 2r: any engine that knows alpha / r loads it

`loraga.json` beside it says how to split it again, so that training goes on with rank r. All functions here are pure.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import SaveError
from .layers import PEFT_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
CONFIG_KEYS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class LayerLayout:
    """Rank and scaling of one layer in the model, and whether it has an offset.

    Attributes:
        rank: of the trained factors.
        scaling: eta.
        offset: whether a start is subtracted.
        parameter: name of the parameter that is adapted instead of a layer (PEFT's `target_parameters`), or None.
    """

    rank: int
    scaling: float
    offset: bool
    parameter: str | None = None

    @property
    def disk_rank(self) -> int:
        """Rank of the plain LoRA on disk."""
        return 2 * self.rank if self.offset else self.rank


@dataclass(frozen=True)
class SplitRecipe:
    """Content of `loraga.json`: what is needed to take a directory apart again.

    Attributes:
        config: the adapter's own r, lora_alpha, use_rslora and patterns.
        ranks: {layer: rank r of the trained part} of each layer that has an offset.
        folded: the offset was subtracted from the base weights when this was saved.
        version: of loraga.
        sha256: `tensor_checksum` of the weight file; empty where an earlier version saved it.
        format: of this file.
    """

    config: dict[str, Any]
    ranks: dict[str, int]
    folded: bool
    version: str
    sha256: str = ""
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> SplitRecipe:
        """Reads a recipe.

        Args:
            data: JSON data.
            source: where it comes from, for the message.

        Returns:
            The recipe.

        Raises:
            SaveError: if it is of another format or incomplete.
        """
        if data.get("format") != FORMAT:
            raise SaveError(f"{source} has format {data.get('format')!r}; this version of loraga reads format {FORMAT}")
        try:
            return cls(
                config={key: data["config"][key] for key in CONFIG_KEYS},
                ranks={str(layer): int(rank) for layer, rank in data["ranks"].items()},
                folded=bool(data["folded"]),
                version=str(data["version"]),
                sha256=str(data.get("sha256", "")),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SaveError(
                f"{source} is damaged: {error!r}; copy the directory again from where it was saved"
            ) from error


def weight_key(layer: str, factor: str) -> str:
    """Key of a layer's factor, "A" or "B", in an adapter file."""
    return f"{PEFT_PREFIX}{layer}.lora_{factor}.weight"


def bias_key(layer: str) -> str:
    """Key of the bias that `LoraConfig(lora_bias=True)` adds after B."""
    return f"{PEFT_PREFIX}{layer}.lora_B.bias"


def offset_key(layer: str, factor: str) -> str:
    """Key of an offset's factor in the model's own adapter state."""
    return f"{PEFT_PREFIX}{layer}.lora_offset_{factor}"


def join(state: Mapping[str, Tensor], layers: Mapping[str, LayerLayout]) -> dict[str, Tensor]:
    """Turns an adapter's state into a plain LoRA's.

    Args:
        state: what PEFT's `get_peft_model_state_dict` gives: factors of rank r, offsets, and everything else.
        layers: the adapter's layers.

    Returns:
        [A; A0] (2r, d_in) and [B, -B0] (d_out, 2r) for layers with an offset; everything else as it was.
    """
    joined = {key: tensor for key, tensor in state.items() if ".lora_offset_" not in key}
    for name, layer in layers.items():
        if not layer.offset:
            continue
        A, B = state[weight_key(name, "A")], state[weight_key(name, "B")]
        A0, B0 = state[offset_key(name, "A")].to(A), state[offset_key(name, "B")].to(B)
        joined[weight_key(name, "A")] = torch.cat([A, A0], dim=0)
        joined[weight_key(name, "B")] = torch.cat([B, -B0], dim=1)
    return joined


def split(state: Mapping[str, Tensor], ranks: Mapping[str, int], source: str) -> dict[str, Tensor]:
    """Takes a plain LoRA's state apart again; the inverse of `join`.

    Args:
        state: tensors of an adapter file.
        ranks: {layer: rank r of the trained part}.
        source: where it comes from, for the message.

    Returns:
        Factors of rank r and offsets, with everything else as it was.

    Raises:
        SaveError: if a layer is missing or has not twice the rank.
    """
    parts = dict(state)
    for name, rank in ranks.items():
        A, B = state.get(weight_key(name, "A")), state.get(weight_key(name, "B"))
        if A is None or B is None or A.shape[0] != 2 * rank or B.shape[1] != 2 * rank:
            raise SaveError(
                f"{source}: layer {name} is not a LoRA of rank {2 * rank}, as loraga.json says; it was changed"
            )
        parts[weight_key(name, "A")], parts[offset_key(name, "A")] = (
            A[:rank].contiguous(),
            A[rank:].contiguous(),
        )
        parts[weight_key(name, "B")], parts[offset_key(name, "B")] = (
            B[:, :rank].contiguous(),
            -B[:, rank:].contiguous(),
        )
    return parts


def plain_config(config: Mapping[str, Any], layers: Mapping[str, LayerLayout]) -> dict[str, Any]:
    """Rewrites an adapter_config.json for the plain LoRA on disk.

    Args:
        config: what PEFT wrote.
        layers: the adapter's layers.

    Returns:
        The same with the ranks on disk and scaling lora_alpha / r, by patterns where layers differ.
    """
    ranks = {name: layer.disk_rank for name, layer in layers.items()}
    alphas = {name: layer.scaling * layer.disk_rank for name, layer in layers.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    patterns = {name: _pattern(name, layer.parameter) for name, layer in layers.items()}
    return {
        **config,
        "init_lora_weights": True,
        "use_rslora": False,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {patterns[name]: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {patterns[name]: value for name, value in alphas.items() if value != alpha},
    }


def _pattern(layer: str, parameter: str | None) -> str:
    if parameter is not None:  # PEFT wraps a module once a parameter, and looks up the rank by the parameter's own name
        layer = f"{layer.replace('.base_layer', '')}.{parameter}"
    return f"^{re.escape(layer)}"


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]
