"""An adapter that another program trained, read from its directory: factors and scalings, layer by layer.

The scaling comes from the saved config alone: alpha / r or alpha / sqrt(r), with what its patterns say of a layer, by
the rule of the PEFT that trained it. Ranks are those of the tensors.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from .adapter_directory import read_config
from .adapter_files import FACTOR
from .adapter_kind import AUTHORS, ORIGINAL, AdapterKind, inspect_adapter
from .errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

# what changes how factors act, or what they act on; DoRA does not: its norm is that of the sum of base and adapter
OTHER_VARIANTS = (
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)


@dataclass(frozen=True)
class SavedLayer:
    """One layer's factors.

    Attributes:
        A: (r, d_in); more dimensions for a convolution.
        B: (d_out, r).
        alpha: lora_alpha of this layer.
        eta: the scaling that it was trained with.
        keys: of A and B in the weight file.
    """

    A: Tensor
    B: Tensor
    alpha: float
    eta: float
    keys: tuple[str, str]

    @property
    def rank(self) -> int:
        """Rank of the factors."""
        return int(self.A.shape[0])

    @property
    def is_linear(self) -> bool:
        """Whether the factors are those of a linear layer, not of an embedding or a convolution."""
        return self.A.dim() == 2 and "lora_embedding_" not in self.keys[0]


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter's directory, read.

    Attributes:
        directory: where.
        kind: what it is.
        config: adapter_config.json.
        state: all its tensors.
        layers: {layer: factors and scaling}.
    """

    directory: Path
    kind: AdapterKind
    config: dict[str, Any]
    state: dict[str, Tensor]
    layers: dict[str, SavedLayer]


def read_saved_adapter(directory: Path) -> SavedAdapter:
    """Reads an adapter whose start may have been subtracted from its base.

    Args:
        directory: the adapter.

    Returns:
        Its tensors, on the CPU.

    Raises:
        SaveError: if it is damaged, or of a variant of LoRA to which no start can be added.
    """
    kind = inspect_adapter(directory)
    if kind.obstacle:
        raise SaveError(f"{directory}: {kind.obstacle}; {kind.remedy}")
    config = read_config(directory)
    if not kind.layers or config.get("peft_type") not in ("LORA", "LORAGA"):
        raise SaveError(f"{directory} is an {kind.title}, not a LoRA; no start was subtracted for it")
    for name in OTHER_VARIANTS:
        if config.get(name):
            raise SaveError(f"{directory}: its config has {name}; only plain LoRA and DoRA can be given a start")
    state = load_file(directory / SAFETENSORS_WEIGHTS_NAME)
    return SavedAdapter(directory, kind, config, state, _layers(directory, kind, config, state))


def is_converted_by_authors(kind: AdapterKind) -> bool:
    """Whether the authors' conversion wrote it: [A; A0] and [B, -B0], twice the trained rank and twice lora_alpha."""
    return kind.kind == AUTHORS and kind.base == ORIGINAL


def _layers(
    directory: Path, kind: AdapterKind, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, SavedLayer]:
    keys: dict[str, dict[str, str]] = {}
    for key in state:
        if match := FACTOR.match(key):
            keys.setdefault(match["layer"], {})[match["factor"]] = key
    layers = {}
    for name, pair in keys.items():
        A, B, alpha = state[pair["A"]], state[pair["B"]], _alpha(config, name, kind)
        rank = A.shape[0] // 2 if is_converted_by_authors(kind) else A.shape[0]
        eta = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        if not eta or not math.isfinite(eta):
            raise SaveError(f"{directory / CONFIG_NAME} is damaged: lora_alpha of layer {name} is {alpha}")
        layers[name] = SavedLayer(A, B, alpha, eta, (pair["A"], pair["B"]))
    return layers


def _alpha(config: Mapping[str, Any], layer: str, kind: AdapterKind) -> float:
    """The trained lora_alpha of a layer; NaN where the config has none."""
    patterns, default = config.get("alpha_pattern") or {}, config.get("lora_alpha")
    if is_converted_by_authors(kind) and isinstance(default, (int, float)):
        default /= 2  # what they double; patterns they leave alone
    if kind.kind == AUTHORS:  # PEFT 0.11 looks both patterns up by the one key that matches first, below a dot only
        keys = [*(config.get("rank_pattern") or {}), *patterns]
        key = next((key for key in keys if re.match(rf".*\.{key}$", layer)), layer)
    else:
        key = get_pattern_key(list(patterns), layer)
    alpha = patterns.get(key, default)
    return float(alpha) if isinstance(alpha, (int, float)) else math.nan
