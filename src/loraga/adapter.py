"""The PeftModel that carries an offset: everything PEFT does with an adapter, done with its start too.

`carry(model)` gives a model a subclass of its own class, so that isinstance checks and deepcopy hold. What it
overrides is what would lose the offset: saving, loading, adding an adapter from another's config (TRL's reference),
weighted sums of adapters, and DistributedDataParallel's broadcast of buffers.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from .adapter_directory import (
    COMPANIONS,
    RECIPE_NAME,
    REPORT_NAME,
    adapter_layout,
    own_config,
    read_config,
    read_recipe,
    read_report,
    read_weights,
    require_agreement,
    require_all_used,
    require_original_weights,
    require_readable,
    split_recipe,
    write_plain_lora,
)
from .adapter_kind import inspect_adapter
from .capture import input_embeddings
from .checksum import tensor_checksum
from .conversion import require_original_base
from .errors import OffsetError, SaveError
from .files import staged_directory
from .layers import base_layer, lora_layers, require_unmerged
from .layout import SplitRecipe, join, offset_key, split
from .merging import SetAside
from .offset import (
    OFFSET_A,
    OFFSET_B,
    attach_offset,
    detach_offset,
    has_offset,
    is_folded,
    merge_loses_offset,
    offset_of,
    trained_factors,
)
from .quantization import repacked_weights_kept, require_gradients
from .residual_record import residual_base_of
from .undo import as_it_was_on_error, same_configs_on_error

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

logger = logging.getLogger("loraga")


class OffsetModel(PeftModel):
    """Overrides of PeftModel; never built directly, see `carry`."""

    _loraga_reports: dict[str, dict[str, Any]]  # JSON data, made here or loaded with the adapter
    _loraga_originals: dict[str, torch.Tensor]
    _loraga_unmerged: SetAside

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """DistributedDataParallel broadcasts buffers at each forward; a start is the same on every rank."""
        return [name for name, _ in self.named_buffers() if f".{OFFSET_A}." in name or f".{OFFSET_B}." in name]

    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves each adapter as a plain LoRA for the original base; see `peft.PeftModel.save_pretrained`."""
        if not safe_serialization:
            raise SaveError("adapters are saved as safetensors only; drop safe_serialization=False")
        if path_initial_model_for_weight_conversion is not None:
            raise SaveError(
                "path_initial_model_for_weight_conversion is not needed: what is saved already is a plain LoRA "
                "for the original base; drop it"
            )
        if save_embedding_layers == "auto" and input_embeddings(self.get_base_model()) is None:
            save_embedding_layers = False  # PEFT asks for them where the head is adapted
        save = partial(
            super().save_pretrained,
            selected_adapters=selected_adapters,
            save_embedding_layers=save_embedding_layers,
            **kwargs,
        )
        if not is_main_process:  # takes part in what is gathered and writes nothing
            with repacked_weights_kept(self):
                save(save_directory=save_directory, is_main_process=False)
            return
        target = Path(save_directory)
        with (
            same_configs_on_error(self),
            repacked_weights_kept(self),
            staged_directory(target, COMPANIONS) as staging,
        ):
            if (target / "README.md").is_file():  # PEFT completes the model card that it finds
                shutil.copy(target / "README.md", staging / "README.md")
            save(save_directory=str(staging))
            for adapter_name in selected_adapters or list(self.peft_config):
                directory = staging if adapter_name == "default" else staging / adapter_name
                self._make_plain(adapter_name, directory)

    def _make_plain(self, adapter_name: str, directory: Path) -> None:
        require_original_weights(directory, lora_layers(self, adapter_name))
        report = self._loraga_reports.get(adapter_name)
        if report is not None:
            (directory / REPORT_NAME).write_text(json.dumps(report, indent=2))
        layers = adapter_layout(self, adapter_name)
        if not any(layer.offset for layer in layers.values()):
            return
        state = join(load_file(directory / SAFETENSORS_WEIGHTS_NAME), layers)
        write_plain_lora(directory, state, layers)
        recipe = replace(split_recipe(self, adapter_name), sha256=tensor_checksum(state))
        (directory / RECIPE_NAME).write_text(json.dumps(recipe.to_dict(), indent=2, sort_keys=True))
        logger.info(
            "adapter %s is saved as a plain LoRA of rank %d for the original base (trained rank %d)",
            adapter_name,
            max(layer.disk_rank for layer in layers.values()),
            max(layer.rank for layer in layers.values()),
        )

    def load_adapter(  # type: ignore[override]  # PEFT's other arguments pass through
        self, model_id: str | os.PathLike[str], adapter_name: str, is_trainable: bool = False, **kwargs: Any
    ) -> Any:
        """Loads an adapter, taking apart a directory that holds an offset; see `peft.PeftModel.load_adapter`."""
        directory = Path(model_id)
        if directory.is_dir():  # else a name on the hub
            model_id = directory = directory / (kwargs.pop("subfolder", None) or "")
            require_readable(directory)
            self._require_no_residual_base(directory)
            require_original_base(inspect_adapter(directory))
        recipe, report = read_recipe(directory), read_report(directory)
        if adapter_name in self.peft_config:
            layers = lora_layers(self, adapter_name)
            require_unmerged(layers)
            if any(has_offset(layer, adapter_name) for layer in layers.values()):
                logger.info("adapter %s: its start and factors give way to those of %s", adapter_name, directory)
            # resuming: PEFT would make half-precision factors float32
            kwargs.setdefault("autocast_adapter_dtype", False)
        with repacked_weights_kept(self), as_it_was_on_error(self, self._tensors_of(adapter_name)):
            if recipe is None:
                self._require_not_folded(adapter_name)
                result = super().load_adapter(model_id, adapter_name, is_trainable=is_trainable, **kwargs)
                for layer in lora_layers(self, adapter_name).values():
                    detach_offset(layer, adapter_name)
            else:
                state = split(read_weights(directory, recipe), recipe.ranks, str(directory))
                if adapter_name not in self.peft_config:
                    self._add_empty(adapter_name, own_config(directory, recipe), is_trainable, **kwargs)
                self._require_same_starts(adapter_name, state, directory)
                self._expect(adapter_name, recipe, directory)
                require_agreement(directory, adapter_layout(self, adapter_name))
                with tempfile.TemporaryDirectory() as parts:
                    shutil.copy(directory / CONFIG_NAME, parts)
                    save_file(state, Path(parts) / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
                    result = super().load_adapter(parts, adapter_name, is_trainable=is_trainable, **kwargs)
                require_all_used(directory, result, adapter_name)
        self._loraga_reports.pop(adapter_name, None)  # it speaks of another start
        if report is not None:
            self._loraga_reports[adapter_name] = report
        return result

    def _require_no_residual_base(self, directory: Path) -> None:
        """Refuses an adapter whose start is not in its directory, but beside the residual base that it is for."""
        place, _ = residual_base_of(directory, read_config(directory))
        if place is not None:
            raise SaveError(
                f"{directory} is for the residual base {place}; load it with loraga.load onto a fresh base model"
            )

    def _tensors_of(self, adapter_name: str) -> list[torch.Tensor]:
        """All that a load of this adapter writes into."""
        if adapter_name not in self.peft_config:
            return []
        state = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
        return [tensor for tensor in state.values() if isinstance(tensor, torch.Tensor)]

    def _add_empty(
        self,
        adapter_name: str,
        config: LoraConfig,
        is_trainable: bool,
        autocast_adapter_dtype: bool = True,
        **_: Any,
    ) -> None:
        """Adds the adapter as PEFT's load_adapter would, before offsets can be attached and weights loaded."""
        self._check_new_adapter_config(config, is_trainable=is_trainable)
        config.inference_mode = not is_trainable
        self.add_adapter(adapter_name, config, autocast_adapter_dtype=autocast_adapter_dtype)
        if is_trainable:
            self.set_requires_grad(adapter_name)

    def _expect(self, adapter_name: str, recipe: SplitRecipe, directory: Path) -> None:
        """Gives each layer the offset that the directory has, and none to the others."""
        layers = lora_layers(self, adapter_name)
        for name, rank in recipe.ranks.items():
            if name not in layers or layers[name].r[adapter_name] != rank:
                raise SaveError(
                    f"{directory}: layer {name} of rank {rank}, which {RECIPE_NAME} names, is not in adapter "
                    f"{adapter_name!r}: it is for another model, or {CONFIG_NAME} was changed"
                )
        for name, layer in layers.items():
            if name in recipe.ranks and not has_offset(layer, adapter_name):
                attach_offset(layer, adapter_name, trained_factors(layer, adapter_name))  # overwritten by the load
            elif name not in recipe.ranks:
                detach_offset(layer, adapter_name)

    def _require_not_folded(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            return
        for name, layer in lora_layers(self, adapter_name).items():
            if is_folded(layer, adapter_name):
                raise OffsetError(
                    f"layer {name}: the offset is folded into the base weight, and what is loaded is for the original "
                    "base; load it onto a fresh base model"
                )

    def _require_same_starts(self, adapter_name: str, state: dict[str, torch.Tensor], directory: Path) -> None:
        """Refuses a start other than the one that is folded into the base weights."""
        for name, layer in lora_layers(self, adapter_name).items():
            if not is_folded(layer, adapter_name):
                continue
            start = offset_of(layer, adapter_name)
            for factor, folded in (("A", start.A), ("B", start.B)):
                loaded = state.get(offset_key(name, factor))
                if loaded is not None and not torch.equal(folded, loaded.to(folded)):
                    raise OffsetError(
                        f"{directory}: layer {name} started elsewhere than what is folded into this base weight; "
                        "load it with loraga.load onto a fresh base model"
                    )

    def add_adapter(self, adapter_name: str, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        """Adds an adapter; one made from another's config object, as TRL makes its reference, gets its start too."""
        source = next((name for name, config in self.peft_config.items() if config is peft_config), None)
        if source is None and self._folded_adapters():
            raise OffsetError(
                "the base weights have an offset folded into them, so another adapter would not be for the original "
                "base; add it to a fresh base model, or use offset='adapter'"
            )
        super().add_adapter(adapter_name, peft_config, *args, **kwargs)
        if source is not None:
            self._share_start(source, adapter_name)

    def _share_start(self, source: str, adapter_name: str) -> None:
        for layer in lora_layers(self, source).values():
            if has_offset(layer, source):
                start, added = offset_of(layer, source), trained_factors(layer, adapter_name)
                attach_offset(layer, adapter_name, start, folded=is_folded(layer, source))
                added.A.copy_(start.A)  # PEFT's fresh B is zero, which would leave minus the start
                added.B.copy_(start.B)
            # PEFT makes the new dropout in train mode, whatever mode the layer is in
            layer.lora_dropout[adapter_name].train(self.training)

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter with its offset and its report; see `peft.PeftModel.delete_adapter`."""
        if self._folded_adapters() == [adapter_name]:
            self._restore_original_weights("delete_adapter()")
        self._loraga_reports.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def unload(self, *args: Any, **kwargs: Any) -> Any:
        """Gives the base model back, without a folded offset if the original weights were kept."""
        if self._folded_adapters():
            self._restore_original_weights("unload()")
        return cast("Any", self.base_model).unload(*args, **kwargs)

    def merge_adapter(self, adapter_names: list[str] | None = None, *args: Any, **kwargs: Any) -> None:
        """Merges adapters into the base weights, which `unmerge_adapter` gives back: 4-bit ones wait where they are."""
        self._require_whole_merge(adapter_names)
        self._loraga_unmerged.keep(module for module in self.modules() if isinstance(module, LoraLayer))
        cast("Any", self.base_model).merge_adapter(adapter_names, *args, **kwargs)
        self._loraga_unmerged.forget_unmerged()

    def unmerge_adapter(self) -> None:
        """Gives the base weights back, bit for bit but for 8-bit ones, which PEFT rounds anew."""
        cast("Any", self.base_model).unmerge_adapter()
        self._loraga_unmerged.give_back()

    def add_weighted_adapter(self, adapters: list[str], *args: Any, **kwargs: Any) -> None:
        """Refuses adapters with an offset: PEFT's weighted sums read lora_A and lora_B alone."""
        for name in adapters:
            if any(has_offset(layer, name) for layer in lora_layers(self, name).values()):
                raise OffsetError(
                    f"add_weighted_adapter would ignore the offset of {name!r}; export the adapters with loraga.export "
                    "and combine those"
                )
        cast("Any", self.base_model).add_weighted_adapter(adapters, *args, **kwargs)

    def train(self, mode: bool = True) -> OffsetModel:
        """Sets train or eval mode; train mode is refused where an evaluation left 4-bit layers without a gradient."""
        if mode and any(parameter.requires_grad for parameter in self.parameters()):
            require_gradients(self)
        return super().train(mode)

    def merge_and_unload(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """Gives the merged base, where PEFT's merge takes the offset along; see `peft`'s `merge_and_unload`."""
        self._require_whole_merge(adapter_names)
        return cast("Any", self.base_model).merge_and_unload(*args, adapter_names=adapter_names, **kwargs)

    def _require_whole_merge(self, adapter_names: list[str] | None) -> None:
        for adapter_name in adapter_names or self.active_adapters:
            for name, layer in lora_layers(self, adapter_name).items():
                if merge_loses_offset(layer, adapter_name):
                    raise OffsetError(
                        f"layer {name}: PEFT's {type(layer).__name__} would merge {adapter_name!r} without its offset; "
                        "export it with loraga.export, load it onto the unquantised base with peft, and merge there"
                    )

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Runs the block on the original base; where it is lost to a folded offset, this is said or undone."""
        if self._folded_adapters() and not self._loraga_originals:
            self._warn_of_changed_base("disable_adapter()")
        with super().disable_adapter(), self._original_weights():
            yield

    def _folded_adapters(self) -> list[str]:
        return [
            str(name)
            for name in self.peft_config
            if any(is_folded(module, name) for module in self.modules() if isinstance(module, LoraLayer))
        ]

    def _warn_of_changed_base(self, method: str) -> None:
        warnings.warn(
            f"an offset is folded into the base weights: {method} gives the changed base, not the original; initialise "
            "with keep_original=True or offset='adapter'",
            stacklevel=4,
        )

    def _restore_original_weights(self, method: str) -> None:
        if not self._loraga_originals:
            self._warn_of_changed_base(method)
        for layer, original in self._changed_layers():
            base_layer(layer).weight.data.copy_(original)
            layer.merged_adapters = []
        self._loraga_originals.clear()

    def _changed_layers(self) -> Iterator[tuple[LoraLayer, torch.Tensor]]:
        """Each layer with an offset folded into its weight, and the kept original of that."""
        modules = dict(self.get_base_model().named_modules())
        for name, original in self._loraga_originals.items():
            yield cast("LoraLayer", modules[name]), original

    @contextmanager
    def _original_weights(self) -> Iterator[None]:
        changed: list[tuple[LoraLayer, torch.Tensor, list[str]]] = []
        try:
            for layer, original in self._changed_layers():
                weight = base_layer(layer).weight.data
                changed.append((layer, weight.clone(), layer.merged_adapters))
                weight.copy_(original)
                layer.merged_adapters = []  # PEFT would take them off the original
            yield
        finally:
            for layer, folded, merged in changed:
                base_layer(layer).weight.data.copy_(folded)
                layer.merged_adapters = merged

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles by PEFT's own class, since the subclass is made at run time."""
        reduced: Any = super().__reduce_ex__(protocol)
        return (_empty, (type(self).__mro__[2],), *reduced[2:])


def carry(model: PeftModel) -> OffsetModel:
    """Makes a PeftModel carry offsets, in place.

    Args:
        model: the model.

    Returns:
        The same object, now of a subclass of its class.
    """
    if not isinstance(model, OffsetModel):
        carrying, unmerged = _subclass(type(model)), SetAside()  # may fail; what follows cannot be left half done
        model.__class__ = carrying
        carried = cast("OffsetModel", model)
        carried._loraga_reports, carried._loraga_originals, carried._loraga_unmerged = {}, {}, unmerged
    return cast("OffsetModel", model)


def uncarry(model: PeftModel, adapter_name: str) -> None:
    """Forgets an adapter, and gives the model its own class back if no other has been initialised.

    Args:
        model: the model.
        adapter_name: the adapter.
    """
    if not isinstance(model, OffsetModel):
        return
    model._loraga_reports.pop(adapter_name, None)
    carried = any(has_offset(layer, name) for name in model.peft_config for layer in lora_layers(model, name).values())
    if not carried and not model._loraga_reports:
        del model._loraga_reports, model._loraga_originals, model._loraga_unmerged
        model.__class__ = type(model).__mro__[2]


_SUBCLASSES: dict[type[PeftModel], type[OffsetModel]] = {}


def _subclass(peft_class: type[PeftModel]) -> type[OffsetModel]:
    if peft_class not in _SUBCLASSES:
        names = {key: getattr(peft_class, key) for key in ("__module__", "__qualname__", "__doc__")}
        _SUBCLASSES[peft_class] = type(peft_class.__name__, (OffsetModel, peft_class), names)
    return _SUBCLASSES[peft_class]


def _empty(peft_class: type[PeftModel]) -> OffsetModel:
    return _subclass(peft_class).__new__(_subclass(peft_class))
