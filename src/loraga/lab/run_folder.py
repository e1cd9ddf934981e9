"""The folder of one run: whose it is, what is in it, and how far the run got.

recipe.yaml       every key with its value; the folder belongs to that recipe alone
versions.json     what it was run with
data.json         the checksum of its rows
start/            the adapter before its first step, with the report of its start (none where no folder can hold it)
start.json        how long that took, and its totals: the start is done
learning_rate.*   where the recipe says auto: the value, its curve, and what was measured later
log.jsonl         a line a logging step
checkpoint-N/     Trainer's, with adalora.safetensors where the method is AdaLoRA
loss.png          its picture
adapter/          the result, a plain LoRA with its model card (model/ after full fine-tuning)
trained.json      written after it, with the number of trainable parameters: training is done
validation.jsonl  a line a row that was taken out of the training data to choose settings by
evaluation.jsonl  a line a held-out row
base.jsonl        the same of the base model, by `loraga evaluate --base`, which may come before the run
metrics.json      written last: the run is done
"""

from __future__ import annotations

import json
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LabError, SettingsError
from .methods import METHODS
from .recipe_check import load_recipe
from .recipe_file import recipe_text, recipe_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .recipe import Recipe

HEAD = "# every key of this run, as loraga train resolved them\n"  # tells our file from one that somebody wrote
RECIPE, VERSIONS, LOG, METRICS, PICTURE = "recipe.yaml", "versions.json", "log.jsonl", "metrics.json", "loss.png"
START, START_FACTS, RESULT, FULL_RESULT = "start", "start.json", "adapter", "model"
DATA, LOCK = "data.json", ".lock"
TRAINED, EVALUATION, BASE = "trained.json", "evaluation.jsonl", "base.jsonl"
VALIDATION = "validation.jsonl"
RATE, RATE_PICTURE = "learning_rate.json", "learning_rate.png"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, by the paths of what is in it."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_done(self) -> bool:
        """Whether the run was carried out to its end."""
        return (self / METRICS).is_file()

    @property
    def has_begun(self) -> bool:
        """Whether a run has left anything here that another one must not take for its own."""
        before = {LOCK, *(made for name in (RECIPE, VERSIONS, DATA, BASE) for made in (name, f".{name}.unfinished"))}
        return any(each.name not in before for each in self.path.iterdir())

    def read_json(self, name: str) -> dict[str, Any]:
        """What one of its JSON files holds."""
        return read_json(self / name)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes one of its JSON files."""
        write_json(self / name, content)

    def losses(self) -> list[float]:
        """The training losses of the log, in order."""
        return [line["loss"] for line in self.training_log()]

    def training_log(self) -> list[dict[str, Any]]:
        """The lines of the log that hold a training loss, in order."""
        return [line for line in self.log() if "loss" in line]

    def log(self) -> list[dict[str, Any]]:
        """The lines of the log; a half line that a killed process left is not one."""
        return read_lines(self / LOG)

    def add_to_log(self, line: Mapping[str, Any]) -> None:
        """Adds a line to the log; a number that is not finite, which JSON does not have, is null."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
        }
        with (self / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def cut_log(self, step: int) -> None:
        """Drops the lines of steps after `step`, which are done again."""
        kept = [line for line in self.log() if line["step"] <= step]
        write_whole(self / LOG, "".join(json.dumps(line) + "\n" for line in kept))


def folder_of(recipe: Recipe) -> RunFolder:
    """The folder that a recipe names, whether it is there or not."""
    return RunFolder(Path(str(recipe.output_dir)).expanduser())


@contextmanager
def open_folder(recipe: Recipe) -> Iterator[RunFolder]:
    """Takes the recipe's folder for this process: makes it, or goes on in it if it is this recipe's.

    Args:
        recipe: with its output_dir.

    Yields:
        The folder.

    Raises:
        SettingsError: if it holds something else, or another process works in it.
        LabError: if it cannot be written.
    """
    folder = folder_of(recipe)
    try:
        require_own(folder, recipe)
        folder.path.mkdir(parents=True, exist_ok=True)
        with held(folder.path):
            if not (folder / RECIPE).exists() or (folder / RECIPE).read_text(encoding="utf-8").startswith(HEAD):
                write_whole(folder / RECIPE, HEAD + recipe_text(recipe))
            yield folder
    except OSError as cause:
        where = cause.filename or folder.path
        raise LabError(f"cannot read or write {where}: {cause.strerror or cause}; what is there is kept") from cause


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder.

    Args:
        folder: it is there.

    Yields:
        Nothing.

    Raises:
        SettingsError: if another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as cause:
        raise SettingsError(f"another process works in {folder}; name another output_dir, or wait") from cause
    try:
        yield
    finally:
        lock.release()


def require_own(folder: RunFolder, recipe: Recipe) -> None:
    """Refuses a folder that belongs to another recipe, or to something else.

    Args:
        folder: where the run is to be.
        recipe: whose run it is.

    Raises:
        SettingsError: if it is not this recipe's.
    """
    if not folder.path.exists():
        return
    if not folder.path.is_dir():
        raise SettingsError(f"{folder.path} is a file, not a folder; name another output_dir")
    if not (folder / RECIPE).exists():
        if folder.has_begun:
            raise SettingsError(f"{folder.path} holds something else and no {RECIPE}; name another output_dir")
        return
    if not folder.has_begun and (folder / RECIPE).read_text(encoding="utf-8").startswith(HEAD):
        return  # a run that failed before its start leaves its folder to the next one
    if differing := differences(recipe_values(load_recipe(folder / RECIPE)), recipe):
        raise SettingsError(
            f"{folder.path} is the folder of another run ({differing}); remove it, or name another output_dir"
        )


def differences(there: Mapping[str, Any], recipe: Recipe) -> str:
    """In which keys the values that a folder was made with differ from a recipe's, in words; empty if in none.

    Args:
        there: the folder's `recipe_values`; where it lies does not matter.
        recipe: the one that is to go on there.

    Returns:
        "rank is 8 there, 4 here; ...".
    """
    here = recipe_values(recipe)
    return "; ".join(
        f"{key} is {there.get(key)} there, {here.get(key)} here"
        for key in dict.fromkeys([*here, *there])
        if key != "output_dir" and there.get(key) != here.get(key)
    )


def require_same_data(folder: RunFolder, digest: str) -> None:
    """Keeps the checksum of a run's data, and refuses to go on with other data.

    Args:
        folder: the run's.
        digest: of the encoded rows.

    Raises:
        SettingsError: if the run began with other rows.
    """
    if not (folder / DATA).is_file():
        folder.write_json(DATA, {"digest": digest})
    elif folder.read_json(DATA)["digest"] != digest:
        raise SettingsError(
            f"the data have changed since the run in {folder.path} began; remove it, or name another output_dir"
        )


def result_name(recipe: Recipe) -> str:
    """The name of the folder that a recipe's result goes to, within the run's."""
    return RESULT if METHODS[recipe.method].adapter else FULL_RESULT


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Args:
        path: the file.

    Returns:
        Its object.

    Raises:
        LabError: if it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise LabError(f"{path} is damaged ({cause}); remove it, and the same command makes it anew") from cause


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as a whole: one that is there is never half written. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_whole(path: Path, content: str | bytes, *, on_disk: bool = True) -> None:
    """Writes a file beside its place and moves it there: one that is there is never half written.

    Args:
        path: the file; its folder is there.
        content: text is written as UTF-8.
        on_disk: move it only when it is on the disk, so that a machine that loses power has it too.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if on_disk:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file that is added to.

    Args:
        path: the file.

    Returns:
        One for each line but a half last one; an empty list if there is no file.

    Raises:
        SettingsError: if it is no such file.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last line break is half a line
        return [json.loads(line) for line in lines if line]
    except ValueError as cause:
        raise SettingsError(f"{path} holds no JSON lines, so it is none of ours; name another file") from cause
