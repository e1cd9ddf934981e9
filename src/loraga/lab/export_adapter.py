"""An adapter on the disk, written anew: plain, at another rank, or merged into its base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraga import export, load

from .base_model import BaseModel, misfit, require_loadable
from .errors import SettingsError
from .quiet import quiet_libraries
from .run_folder import RESULT

if TYPE_CHECKING:
    from pathlib import Path

    from loraga import Exported

CONFIG = "adapter_config.json"


def export_adapter(adapter: Path, output: Path, rank: int | None, merge: bool, model: str | None) -> Exported:
    """Loads an adapter onto its base model and writes it anew.

    Args:
        adapter: its folder, or that of a run.
        output: the folder to write.
        rank: to compress to; None keeps everything.
        merge: write the merged model, with its tokenizer.
        model: the base model; None for the one that the adapter names.

    Returns:
        What was written, and what compressing cost.

    Raises:
        SettingsError: if there is no such adapter, or it names no base model.
    """
    directory = adapter if (adapter / CONFIG).is_file() else adapter / RESULT
    if not (directory / CONFIG).is_file():
        raise SettingsError(f"{adapter} holds no {CONFIG}, so it is no adapter's folder, nor that of a finished run")
    found = require_loadable(directory)
    if not (name := model or found.base_model):
        raise SettingsError(f"{directory / CONFIG} names no base model; name it with --model")
    base = BaseModel(name)
    with quiet_libraries():
        try:
            loaded = load(base.load(), directory)
        except RuntimeError as cause:
            raise SettingsError(misfit(directory, name, cause)) from cause
        written = export(loaded, output, rank=rank, merge=merge)
        if merge:
            base.load_tokenizer().save_pretrained(str(output))
    return written
