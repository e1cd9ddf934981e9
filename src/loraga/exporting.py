"""Taking an adapter elsewhere: as a plain LoRA for the original base, compressed, or merged; and reading it back."""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn

from .adapter import carry
from .adapter_directory import (
    COMPANIONS,
    RECIPE_NAME,
    REPORT_NAME,
    adapter_layout,
    own_config,
    read_config,
    read_recipe,
    read_report,
    require_readable,
    save_alone,
    tensor_names,
    write_plain_lora,
)
from .capture import is_linear
from .conversion import for_original_base
from .errors import AdapterError, SaveError
from .files import staged_directory
from .gradient import LowRankGradient, factor_product
from .layers import PEFT_PREFIX, active_adapter, base_layer, lora_layers, require_unmerged
from .layout import LayerLayout, bias_key, weight_key
from .offset import has_offset, offset_of, trained_factors
from .preconditions import require_unchanged_base
from .quantization import is_quantized, repacked_weights_kept
from .residual import attach_residual_start, base_name, require_base_of, require_known_start
from .residual_record import MIRRORED, RESIDUAL, START
from .scheme import Factors
from .undo import as_it_was_on_error, same_configs_on_error
from .weights import tied_layers

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from peft.tuners.lora import LoraLayer

logger = logging.getLogger("loraga")

MERGED, ADAPTER = "merged", "adapter"
SAFE_WEIGHTS_STEM = "model"  # of transformers: model.safetensors, its index, and model-00001-of-00002.safetensors
ADAPTER_FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, RECIPE_NAME, REPORT_NAME)


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        directory: where.
        kind: "adapter" or "merged"; "mirrored" or "residual" for a start that another tool trains.
        ranks: {layer: rank on disk}; empty for a merged model.
        relative_errors: {layer: ||what was cut off||_F / ||change of the weight||_F}; 0 unless compressed, or rounded
            in a residual base.
        relative_error: the same over all layers together.
    """

    directory: str
    kind: str
    ranks: dict[str, int]
    relative_errors: dict[str, float]
    relative_error: float

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        """One line on what was written, and what compressing or rounding it cost."""
        ranks = ", ".join(map(str, sorted(set(self.ranks.values()))))
        cost = ""
        if self.relative_error > 0:
            worst = max(self.relative_errors, key=self.relative_errors.__getitem__)
            cost = (
                f"; compressing lost {self.relative_error:.2%} of the change (norm over all layers), "
                f"at worst {self.relative_errors[worst]:.2%} in {worst}"
            )
            if self.kind == RESIDUAL:
                cost = f"; rounding lost {self.relative_error:.2g} of the start, at worst "
                cost += f"{self.relative_errors[worst]:.2g} in {worst}"
        written = {
            MERGED: "merged model",
            ADAPTER: f"plain LoRA of rank {ranks} for the original base",
            MIRRORED: f"mirrored start, a plain LoRA of rank {ranks} for the original base,",
            RESIDUAL: f"residual base, and in its folder {START} an adapter of rank {ranks} for it,",
        }[self.kind]
        return f"{written} written to {self.directory}{cost}"


def export(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    rank: int | None = None,
    merge: bool = False,
    adapter_name: str | None = None,
) -> Exported:
    """Writes an adapter so that anything that knows LoRA loads it onto the original base, or the merged model.

    Args:
        model: a PeftModel with LoRA, initialised by this package or not; it is not changed.
        directory: where to; a complete directory there is replaced only by a complete one.
        rank: compress to this rank by a singular value decomposition of each layer's change; by default nothing is
            lost, and the rank on disk is twice the trained one where a start is subtracted.
        merge: write the merged model instead of an adapter.
        adapter_name: the adapter; by default the active one.

    Returns:
        What was written, and what compressing cost.

    Raises:
        AdapterError: if the model has no such adapter, one that cannot be compressed, one merged already, or, without
            `merge`, one whose start PEFT subtracted from the base.
        SaveError: if the directory cannot be written, or a quantised base cannot be merged.
    """
    if not isinstance(model, PeftModel):
        raise AdapterError(f"{type(model).__name__} is not a PeftModel; there is no adapter to export")
    name = adapter_name or active_adapter(model)
    if merge and rank is not None:
        raise SaveError("rank= and merge=True exclude each other: a merged model has no rank")
    if not merge:
        require_unchanged_base(model, name)
    layers = lora_layers(model, name)
    require_known_start(model, name, layers)
    if merge:
        exported = _export_merged(model, name, layers, Path(directory))
    elif rank is not None:
        exported = _export_compressed(model, name, layers, Path(directory), rank)
    else:
        exported = _export_adapter(model, name, Path(directory))
    logger.info("%s", exported)
    return exported


def load(
    base: nn.Module,
    directory: str | os.PathLike[str],
    *,
    is_trainable: bool = False,
    adapter_name: str = "default",
    initial: str | os.PathLike[str] | None = None,
    changed_base: nn.Module | str | os.PathLike[str] | None = None,
) -> PeftModel:
    """Loads an adapter onto its original base, so that training can go on with the trained rank.

    Args:
        base: the original base model; for an adapter that was trained on a residual base, either of the two.
        directory: what `save_pretrained`, a Trainer checkpoint or `export` wrote, or any plain LoRA. If it cannot be
            loaded, the base model is as it was.
        is_trainable: whether the adapter is to be trained.
        adapter_name: its name in the model.
        initial: for an adapter whose start was subtracted from its base, by PEFT's or the authors' LoRA-GA, PiSSA,
            OLoRA or CorDA: the directory of the same adapter before training. What is loaded is its conversion.
        changed_base: for the same, the base model that it was trained on, or its directory; given both, they are
            compared.

    Returns:
        The PeftModel, with its offset where the directory, or the residual base that it names, has one; no gradient
        pass is made.

    Raises:
        OffsetError: if the adapter is for another base than this one, as far as residual bases tell.
        SaveError: if the directory is missing or damaged; if it is for a changed base and neither `initial` nor
            `changed_base` is given, or they do not belong to it. A bit changed within the weights is found by the
            checksum in `loraga.json`, hence only where the directory has an offset; plain PEFT never looks.
    """
    path = Path(directory)
    require_readable(path)
    with for_original_base(base, path, initial, changed_base) as plain:
        return _load(base, plain, is_trainable, adapter_name)


def _load(base: nn.Module, path: Path, is_trainable: bool, adapter_name: str) -> PeftModel:
    """Loads an adapter that is for the original base."""
    recipe, report = read_recipe(path), read_report(path)
    residual = require_base_of(path, read_config(path), base_name(base))
    with as_it_was_on_error(base, _named(base, tensor_names(path))):
        if recipe is None:
            with repacked_weights_kept(base):  # PEFT asks for the whole state dict
                plain = PeftModel.from_pretrained(base, str(path), adapter_name=adapter_name, is_trainable=is_trainable)
            if residual is not None:
                attach_residual_start(plain, adapter_name, *residual)
            if report is not None:
                carry(plain)._loraga_reports[adapter_name] = report
            return plain
        config = own_config(path, recipe)
        config.inference_mode = not is_trainable
        model = carry(get_peft_model(base, config, adapter_name=adapter_name))
        model.load_adapter(str(path), adapter_name, is_trainable=is_trainable)
        return model


def _named(base: nn.Module, saved: Iterable[str]) -> list[torch.Tensor]:
    """The base model's own weights that a directory holds too: biases, or embeddings."""
    parameters = dict(base.named_parameters())
    names = [name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".") for name in saved]
    return [parameters[name] for name in names if name in parameters]


def _export_adapter(model: PeftModel, name: str, directory: Path) -> Exported:
    ranks = {layer: layout.disk_rank for layer, layout in adapter_layout(model, name).items()}
    exported = Exported(str(directory), ADAPTER, ranks, dict.fromkeys(ranks, 0.0), 0.0)
    with same_configs_on_error(model), staged_directory(directory, COMPANIONS) as staging:
        save_alone(model, name, staging)
    return exported


def _export_compressed(
    model: PeftModel, name: str, layers: dict[str, LoraLayer], directory: Path, rank: int
) -> Exported:
    if rank < 1:
        raise AdapterError(f"rank is {rank}; it must be a positive whole number")
    changes = {layer: _change(layer, module, name) for layer, module in layers.items()}
    kept = {layer: change.truncate(rank) for layer, change in changes.items()}
    errors = {layer: change.tail / change.norm if change.norm else 0.0 for layer, change in kept.items()}
    lost = sum(change.tail**2 for change in kept.values()) ** 0.5
    total = sum(change.norm**2 for change in kept.values()) ** 0.5
    ranks = {layer: change.columns for layer, change in kept.items()}
    exported = Exported(str(directory), ADAPTER, ranks, errors, lost / total if total else 0.0)
    with same_configs_on_error(model), staged_directory(directory, COMPANIONS) as staging:
        save_alone(model, name, staging)
        (staging / RECIPE_NAME).unlink(missing_ok=True)  # what is left is trained factors only
        state = load_file(staging / SAFETENSORS_WEIGHTS_NAME)
        for layer, change in kept.items():
            root = change.S.sqrt()
            dtype = state[weight_key(layer, "A")].dtype
            state[weight_key(layer, "A")] = (root[:, None] * change.Vh).to("cpu", dtype).contiguous()
            state[weight_key(layer, "B")] = (change.U * root).to("cpu", dtype).contiguous()
            bias = bias_key(layer)
            if bias in state:  # PEFT multiplies it by the scaling too, which becomes 1
                state[bias] = state[bias] * layers[layer].scaling[name]
        layout = {layer: LayerLayout(rank=change.columns, scaling=1.0, offset=False) for layer, change in kept.items()}
        write_plain_lora(staging, state, layout)
    return exported


def _change(layer: str, module: LoraLayer, name: str) -> LowRankGradient:
    """The change eta (B A - B0 A0) of one layer's weight as its singular triplets."""
    if name not in module.lora_A or module.lora_magnitude_vector or not is_linear(base_layer(module)):
        raise AdapterError(f"layer {layer}: only plain LoRA on a linear layer can be compressed; drop rank=")
    now = trained_factors(module, name)
    start = offset_of(module, name) if has_offset(module, name) else Factors(A=now.A[:0], B=now.B[:, :0])
    left = module.scaling[name] * torch.cat([now.B.float(), -start.B.float()], dim=1)
    return factor_product(left, torch.cat([now.A.float(), start.A.float()], dim=0), loss_terms=0.0)


def _export_merged(model: PeftModel, name: str, layers: dict[str, LoraLayer], directory: Path) -> Exported:
    require_unmerged(layers)
    for layer, module in layers.items():
        if is_quantized(base_layer(module)):
            raise SaveError(
                f"layer {layer}: its base weight is quantised, so merging would round the adapter away; export the "
                "adapter, load it onto the unquantised base with peft, and merge there"
            )
    for layer in tied_layers(model, layers):
        raise SaveError(
            f"layer {layer}: its weight is tied to another module's, which merging would change too; export the "
            "adapter, or untie the weights first"
        )
    copied = copy.deepcopy(model)
    copied.set_adapter(name)  # modules_to_save are merged of the active adapter, whatever adapter_names says
    merged = copied.merge_and_unload(adapter_names=[name])
    if not hasattr(merged, "save_pretrained"):
        raise SaveError(
            f"{type(merged).__name__} has no save_pretrained; save the result of merge_and_unload() yourself"
        )
    # another model's weights, whole or in shards, which transformers would take for this one's
    others = {path.name for path in directory.glob(f"{SAFE_WEIGHTS_STEM}*.safetensors*")}
    with staged_directory(directory, {"config.json": (*ADAPTER_FILES, *sorted(others))}) as staging:
        merged.save_pretrained(str(staging))
    return Exported(str(directory), MERGED, {}, {}, 0.0)
