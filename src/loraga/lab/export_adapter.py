"""An adapter on the disk, written anew: plain, at another rank, or merged into its base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraga import export, load
from loraga.adapter_kind import FOR_RESIDUAL, OURS, inspect_adapter

from .base_model import BaseModel, misfit, require_loadable
from .errors import SettingsError
from .quiet import quiet_libraries
from .run_folder import RESULT

if TYPE_CHECKING:
    from pathlib import Path

    from loraga import Exported
    from loraga.adapter_kind import AdapterKind

CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"


def export_adapter(
    adapter: Path,
    output: Path,
    rank: int | None,
    merge: bool,
    model: str | None,
    initial: Path | None = None,
    changed_base: Path | None = None,
) -> Exported:
    """Loads an adapter onto its base model and writes it anew.

    Args:
        adapter: its folder, or that of a run.
        output: the folder to write.
        rank: to compress to; None keeps everything.
        merge: write the merged model, with its tokenizer.
        model: the base model; None for the one that the adapter names.
        initial: the adapter before training, if its start was subtracted from its base.
        changed_base: for the same, the folder of the base model that it was trained on.

    Returns:
        What was written, and what compressing cost.

    Raises:
        SettingsError: if there is no such adapter, it names no base model, or is not for that.
    """
    directory = adapter if (adapter / CONFIG).is_file() else adapter / RESULT
    if not (directory / CONFIG).is_file():
        raise SettingsError(f"{adapter} holds no {CONFIG}, so it is no adapter's folder, nor that of a finished run")
    found = _require_exportable(directory, initial, changed_base)
    if not (name := model or found.base_model):
        raise SettingsError(f"{directory / CONFIG} names no base model; name it with --model")
    base = BaseModel(name)
    with quiet_libraries():
        try:
            loaded = load(base.load(), directory, initial=initial, changed_base=changed_base)
        except RuntimeError as cause:
            raise SettingsError(misfit(directory, name, cause)) from cause
        written = export(loaded, output, rank=rank, merge=merge)
        if merge:
            base.load_tokenizer().save_pretrained(str(output))
    return written


def _require_exportable(adapter: Path, initial: Path | None, changed_base: Path | None) -> AdapterKind:
    """Refuses what cannot be exported with what is given, before the base model is loaded."""
    found = inspect_adapter(adapter)
    if initial is None and changed_base is None:
        # a residual adapter's start is beside its base, and `load` takes it from there
        return found if found.loraga_loads or found.kind == FOR_RESIDUAL else require_loadable(adapter)
    if found.kind == OURS:
        raise SettingsError(f"{adapter} is for the original base as it is; leave --initial and --changed-base away")
    if initial is not None and not (initial / CONFIG).is_file():
        raise SettingsError(f"{initial} holds no {CONFIG}; name the adapter's folder that was saved before training")
    if changed_base is not None and not (changed_base / MODEL_CONFIG).is_file():
        raise SettingsError(f"{changed_base} holds no {MODEL_CONFIG}, so it is no base model's folder")
    return found
