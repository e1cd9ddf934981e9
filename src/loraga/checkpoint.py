"""Which of a Trainer's checkpoints can be resumed from after the process was stopped at any moment.

Trainer writes a checkpoint file by file, `trainer_state.json` last, and its own `resume_from_checkpoint=True` takes the
newest directory whether or not it was finished.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from .adapter_directory import RECIPE_NAME, read_recipe, read_weights
from .errors import SaveError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

# Trainer's names, from transformers.trainer, which takes seconds to import and asks for accelerate
PREFIX_CHECKPOINT_DIR, TRAINER_STATE_NAME = "checkpoint", "trainer_state.json"
CHECKPOINT = rf"{PREFIX_CHECKPOINT_DIR}-(\d+)"
OPTIMIZER_NAME, SCHEDULER_NAME = "optimizer.pt", "scheduler.pt"
SHARDED_PATTERNS = ("global_step*", "optimizer.bin", "optimizer_*")  # what DeepSpeed and FSDP write instead

SET_ASIDE_PREFIX = "incomplete-"
FOLDER = 0x10  # the mark of a folder in a zip file: torch gives uninitialised memory for a tensor that has it

logger = logging.getLogger("loraga")


def newest_complete_checkpoint(output_dir: str | os.PathLike[str], *, set_aside: bool = True) -> Path | None:
    """Finds the checkpoint to resume from: the one of most steps that was written to its end.

    An incomplete checkpoint is reported as a warning in the log and renamed to `incomplete-checkpoint-N`, since Trainer
    would count it as one of the `save_total_limit` that it keeps and `resume_from_checkpoint=True` would take it. Call
    this before training starts, not while another process writes to the directory.

    Args:
        output_dir: the run's output directory.
        set_aside: rename what is incomplete; otherwise the directory is only read.

    Returns:
        The checkpoint's path, or None if there is none: train from the start.
    """
    newest = None
    for path in reversed(_checkpoints(Path(output_dir))):
        reason = why_incomplete(path) if newest is None else next(_defects(path), None)
        if reason is None:
            newest = newest or path
            continue
        moved = _set_aside(path) if set_aside else None
        logger.warning(
            "%s is incomplete and is not resumed from (%s)%s", path, reason, f"; now {moved}" if moved else ""
        )
    return newest


def why_incomplete(checkpoint: str | os.PathLike[str]) -> str | None:
    """Looks whether a checkpoint was written to its end, and is what was written, as far as there are checksums.

    Args:
        checkpoint: a directory that Trainer wrote, of an adapter or of a whole model.

    Returns:
        What is missing or damaged, or None: it is complete.
    """
    return next(chain(_defects(Path(checkpoint)), _changes(Path(checkpoint))), None)


def _checkpoints(output_dir: Path) -> list[Path]:
    """Trainer's checkpoints by rising number of steps."""
    if not output_dir.is_dir():
        return []
    found = []
    for path in output_dir.iterdir():
        match = re.fullmatch(CHECKPOINT, path.name)
        if match is not None and path.is_dir():
            found.append((int(match.group(1)), path))
    return [path for _, path in sorted(found)]


def _set_aside(path: Path) -> Path | None:
    """Renames a checkpoint; None if another process did so first."""
    target = path.with_name(SET_ASIDE_PREFIX + path.name)
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f"{SET_ASIDE_PREFIX}{path.name}-{count}")
    try:
        return path.rename(target)
    except FileNotFoundError:
        return None


def _defects(checkpoint: Path) -> Iterator[str]:
    """What is wrong with a checkpoint; first what Trainer writes last."""
    yield from _state_defects(checkpoint)
    yield from _resume_defects(checkpoint)
    folders = [checkpoint, *sorted(path for path in checkpoint.iterdir() if path.is_dir())]
    for folder in folders:
        for weights in sorted(folder.glob("*.safetensors")):
            yield from _weight_defects(weights)
        for index in sorted(folder.glob("*.safetensors.index.json")):
            yield from _shard_defects(index)
        if (folder / CONFIG_NAME).exists() or (folder / SAFETENSORS_WEIGHTS_NAME).exists():
            yield from _json_defects(folder / CONFIG_NAME)
            if not (folder / SAFETENSORS_WEIGHTS_NAME).exists():
                yield f"{folder / SAFETENSORS_WEIGHTS_NAME} is missing"
        if (folder / RECIPE_NAME).exists():
            yield from _json_defects(folder / RECIPE_NAME)
    if not any(any(folder.glob("*.safetensors")) for folder in folders) and not _is_sharded(checkpoint):
        yield f"{checkpoint} holds no weights"


def _changes(checkpoint: Path) -> Iterator[str]:
    """What is whole and yet not what was written: the files are read, which `_defects` does not do."""
    for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]):
        if not _is_sound(path):
            yield f"{path} is damaged: a checksum in it does not fit"
    for path in sorted(checkpoint.rglob(RECIPE_NAME)):
        try:
            recipe = read_recipe(path.parent)
            if recipe is not None:
                read_weights(path.parent, recipe)
        except SaveError as error:
            yield str(error)


def _is_sound(archive: Path) -> bool:
    """Compares a file of torch's with the checksums in it, which torch itself does not look at."""
    try:
        with zipfile.ZipFile(archive) as opened:
            marked = any(entry.external_attr & FOLDER for entry in opened.infolist())
            return opened.testzip() is None and not marked
    except Exception:  # zipfile lets through what zlib and others raise where the method of compression was changed
        return False


def _state_defects(checkpoint: Path) -> Iterator[str]:
    path = checkpoint / TRAINER_STATE_NAME
    state, defect = _read_json(path)
    if defect:
        yield defect
    elif (match := re.fullmatch(CHECKPOINT, checkpoint.name)) and int(match.group(1)) != state.get("global_step"):
        yield f"{path} is damaged: its step is {state.get('global_step')}"


def _resume_defects(checkpoint: Path) -> Iterator[str]:
    """Optimizer, schedule and random states: all whole, or (save_only_model) none there."""
    random_states = sorted(checkpoint.glob("rng_state*.pth"))
    optimizer, scheduler = checkpoint / OPTIMIZER_NAME, checkpoint / SCHEDULER_NAME
    there = [path for path in (optimizer, scheduler, *random_states) if path.exists()]
    if there and not _is_sharded(checkpoint):
        for path in (optimizer, scheduler):
            if not path.exists():
                yield f"{path} is missing"
        if not random_states:
            yield f"{checkpoint} holds no random states"
    for path in there:
        if not _is_archive(path):
            yield f"{path} is cut short"


def _is_archive(path: Path) -> bool:
    """Whether a zip file's directory stands at its end."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # where the directory claims several disks
        return False


def _is_sharded(checkpoint: Path) -> bool:
    """Whether DeepSpeed or FSDP wrote weights and optimizer into files of their own."""
    return any(any(checkpoint.glob(pattern)) for pattern in SHARDED_PATTERNS)


def _json_defects(path: Path) -> Iterator[str]:
    _, defect = _read_json(path)
    if defect:
        yield defect


def _shard_defects(index: Path) -> Iterator[str]:
    data, defect = _read_json(index)
    if defect:
        yield defect
        return
    for shard in sorted(set(data.get("weight_map", {}).values())):
        if not (index.parent / shard).is_file():
            yield f"{index.parent / shard} is missing"


def _read_json(path: Path) -> tuple[dict[str, Any], str | None]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, f"{path} is missing"
    except (OSError, ValueError) as error:
        return {}, f"{path} is damaged: {error}"
    if not isinstance(data, dict):
        return {}, f"{path} is damaged: it holds no object"
    return data, None


def _weight_defects(path: Path) -> Iterator[str]:
    """Compares a safetensors file's length with its header; the tensors themselves are not read."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        yield f"{path} is damaged: {error}"
