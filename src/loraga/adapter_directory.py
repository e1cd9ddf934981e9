"""A saved adapter's directory: the names of its files, what is written into them, and what is read back.

    adapter_config.json, adapter_model.safetensors   a plain LoRA, as PEFT writes and reads it
    loraga.json                                      how to take it apart again, and a checksum of the weights; only
                                                     where it holds an offset
    loraga_report.json                               what the initialisation did

Other files in the directory, a model card for instance, are not ours. PEFT checks lengths and shapes alone: a bit
changed within the weights is found only where there is a loraga.json, and by this package only.
"""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from peft import LoraConfig
from peft.tuners.lora import ParamWrapper
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ._version import __version__
from .checksum import tensor_checksum
from .errors import SaveError
from .layers import PEFT_PREFIX, lora_layers
from .layout import CONFIG_KEYS, LayerLayout, SplitRecipe, plain_config
from .offset import has_offset, is_folded

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from torch import Tensor

RECIPE_NAME = "loraga.json"
REPORT_NAME = "loraga_report.json"
COMPANIONS = {CONFIG_NAME: (RECIPE_NAME, REPORT_NAME)}  # what speaks of an adapter, and goes with it
AGAIN = "copy the directory again from where it was saved, or take an earlier one"

logger = logging.getLogger("loraga")


def adapter_layout(model: PeftModel, adapter_name: str) -> dict[str, LayerLayout]:
    """Rank, scaling and offset of each layer of an adapter.

    Args:
        model: the model.
        adapter_name: the adapter.

    Returns:
        {layer: layout}.
    """
    return {
        name: LayerLayout(
            rank=layer.r[adapter_name],
            scaling=layer.scaling[adapter_name],
            offset=has_offset(layer, adapter_name),
            parameter=layer.parameter_name if isinstance(layer, ParamWrapper) else None,
        )
        for name, layer in lora_layers(model, adapter_name).items()
    }


def save_alone(model: PeftModel, adapter_name: str, directory: Path) -> None:
    """Saves one adapter into an empty directory itself, whatever its name.

    Args:
        model: the model.
        adapter_name: the adapter.
        directory: where its files go.
    """
    saved = directory / "saved"
    model.save_pretrained(str(saved), selected_adapters=[adapter_name])
    source = saved if adapter_name == "default" else saved / adapter_name  # as PEFT names its folders
    for path in list(source.iterdir()):
        path.rename(directory / path.name)
    for path in list(saved.iterdir()):
        path.rename(directory / path.name) if path.is_file() else path.rmdir()
    saved.rmdir()


def require_original_weights(directory: Path, layers: Mapping[str, LoraLayer]) -> None:
    """Refuses a directory in which PEFT saved, with the adapter, a base weight that the adapter is merged into.

    PEFT saves the base weight of a head or an embedding that the adapter is on.

    Args:
        directory: what PEFT saved.
        layers: the adapter's layers.

    Raises:
        SaveError: if a layer is merged and its base weight is there.
    """
    merged = [name for name, layer in layers.items() if layer.merged]
    if not merged:
        return
    saved = tensor_names(directory)
    for name in merged:
        if f"{PEFT_PREFIX}{name}.base_layer.weight" in saved:
            raise SaveError(
                f"layer {name}: its base weight is saved too, and an adapter is merged into it; call unmerge_adapter() "
                "first, or pass save_embedding_layers=False"
            )


def split_recipe(model: PeftModel, adapter_name: str) -> SplitRecipe:
    """What must be known to take the saved adapter apart again.

    Args:
        model: the model.
        adapter_name: the adapter.

    Returns:
        The content of `loraga.json`.
    """
    config = model.peft_config[adapter_name]
    layers = lora_layers(model, adapter_name)
    return SplitRecipe(
        config={key: getattr(config, key) for key in CONFIG_KEYS},
        ranks={name: layer.r[adapter_name] for name, layer in layers.items() if has_offset(layer, adapter_name)},
        folded=any(is_folded(layer, adapter_name) for layer in layers.values()),
        version=__version__,
    )


def read_recipe(directory: Path) -> SplitRecipe | None:
    """Reads a directory's `loraga.json`.

    Args:
        directory: a saved adapter.

    Returns:
        The recipe, or None where there is none: the directory is a plain LoRA as it stands.

    Raises:
        SaveError: if the file is damaged.
    """
    path = directory / RECIPE_NAME
    return SplitRecipe.from_dict(_read_object(path), str(path)) if path.is_file() else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SaveError(f"{path} is damaged ({error}); {AGAIN}") from error
    if not isinstance(data, dict):
        raise SaveError(f"{path} is damaged (it holds no object); {AGAIN}")
    return data


def read_config(directory: Path) -> dict[str, Any]:
    """A directory's adapter_config.json as JSON data; SaveError if it is damaged."""
    return _read_object(directory / CONFIG_NAME)


def require_readable(directory: Path) -> None:
    """Refuses a directory without a whole config and weights of the length that their header says.

    Args:
        directory: a saved adapter.

    Raises:
        SaveError: if one of them is missing or damaged.
    """
    for needed in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (directory / needed).is_file():
            raise SaveError(f"{directory} holds no {needed}; it is not an adapter directory")
    _read_object(directory / CONFIG_NAME)
    weights = directory / SAFETENSORS_WEIGHTS_NAME
    try:
        with safe_open(weights, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise SaveError(f"{weights} is damaged ({error}); {AGAIN}") from error


def tensor_names(directory: Path) -> set[str]:
    """The names of the tensors in a directory's weight file."""
    with safe_open(directory / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        return set(file.keys())


def read_weights(directory: Path, recipe: SplitRecipe) -> dict[str, Tensor]:
    """Reads a directory's tensors and compares them with the checksum in its `loraga.json`.

    Args:
        directory: a saved adapter.
        recipe: its `loraga.json`.

    Returns:
        The tensors, on the CPU.

    Raises:
        SaveError: if they are not those that were saved with it.
    """
    path = directory / SAFETENSORS_WEIGHTS_NAME
    state = load_file(path)
    if recipe.sha256 and tensor_checksum(state) != recipe.sha256:
        raise SaveError(
            f"{path} is not what was saved with {RECIPE_NAME} (their checksums differ); {AGAIN}. If plain PEFT has "
            f"trained it on, remove {RECIPE_NAME}: then it is a plain LoRA"
        )
    return state


def require_agreement(directory: Path, layers: Mapping[str, LayerLayout]) -> None:
    """Refuses a config that speaks of other ranks or scalings than `loraga.json`.

    Args:
        directory: a saved adapter.
        layers: the adapter's layers by its `loraga.json`.

    Raises:
        SaveError: if the two differ.
    """
    found, expected = _read_object(directory / CONFIG_NAME), plain_config({}, layers)
    for key in CONFIG_KEYS:
        if found.get(key) != expected[key]:
            raise SaveError(
                f"{directory / CONFIG_NAME} says {key} {found.get(key)}, and {RECIPE_NAME} {expected[key]}: one of "
                f"them was changed; {AGAIN}"
            )


def require_all_used(directory: Path, loaded: Any, adapter_name: str) -> None:
    """Refuses weights of which some found no place, or some places no weights: PEFT lets both pass.

    Args:
        directory: a saved adapter.
        loaded: what PEFT's `load_adapter` returned.
        adapter_name: the adapter that it was loaded as.

    Raises:
        SaveError: with the first of them.
    """
    missing = [key for key in loaded.missing_keys if _is_of(adapter_name, key)]
    for keys, said in ((loaded.unexpected_keys, "has no place for"), (missing, "found no")):
        if keys:
            raise SaveError(f"{directory}: the adapter that its {CONFIG_NAME} describes {said} {keys[0]}; {AGAIN}")


def _is_of(adapter_name: str, key: str) -> bool:
    """PEFT calls missing each key of any adapter that holds the name's letters."""
    return any(holder.startswith("lora_") and name == adapter_name for holder, name in pairwise(key.split(".")))


def read_report(directory: Path) -> dict[str, Any] | None:
    """Reads a directory's `loraga_report.json`, as it stands: a later version may have written it.

    Args:
        directory: a saved adapter.

    Returns:
        The JSON data; None where there is none, and, with a warning in the log, where it is damaged.
    """
    path = directory / REPORT_NAME
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        data = None
    if not isinstance(data, dict):
        logger.warning("%s is damaged and is left out", path)
        return None
    return data


def own_config(directory: Path, recipe: SplitRecipe) -> LoraConfig:
    """The adapter's own config, with which it was trained.

    Args:
        directory: a saved adapter.
        recipe: its `loraga.json`.

    Returns:
        A LoraConfig of rank r.

    Raises:
        SaveError: if adapter_config.json is damaged.
    """
    try:
        config = LoraConfig.from_pretrained(str(directory))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SaveError(f"{directory / CONFIG_NAME} is damaged ({error}); {AGAIN}") from error
    for key, value in recipe.config.items():
        setattr(config, key, value)
    return config


def write_plain_lora(directory: Path, state: Mapping[str, Tensor], layers: Mapping[str, LayerLayout]) -> None:
    """Replaces what PEFT saved in a directory by a plain LoRA of other ranks; PEFT's other settings stay.

    Args:
        directory: where PEFT has written its adapter_config.json.
        state: the tensors.
        layers: rank and scaling of each layer in them.
    """
    save_file(dict(state), directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config = directory / CONFIG_NAME
    config.write_text(json.dumps(plain_config(json.loads(config.read_text()), layers), indent=2, sort_keys=True))
