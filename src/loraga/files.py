"""Writing a directory so that a killed process or a full disk leaves the last complete one."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from .errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextmanager
def staged_directory(
    target: str | os.PathLike[str], companions: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Path]:
    """Gives an empty directory to write into, and moves its files to the target when all of them are on the disk.

    A target that does not exist, or is empty, appears at once; in one that exists the files are replaced one by one
    and other files stay. The staging directory lies beside the target; inside it where moving from beside is not
    possible, and then the files appear one by one.

    Args:
        target: the directory to write, or a link to it.
        companions: {file: files that speak of it}; where the file is replaced, companions that were not written anew
            speak of the old one and are removed.

    Yields:
        The staging directory.

    Raises:
        SaveError: if it cannot be written; the target is then as it was.
    """
    target = Path(target).resolve()
    if target.exists() and not target.is_dir():
        raise SaveError(f"{target} is a file, not a directory")
    staging: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        staging = _make_staging(target)
        staging.chmod(0o755)
        yield staging
        for path in _files(staging):
            flush(path)
        _publish(staging, target, companions or {})
    except (OSError, SafetensorError) as error:
        raise SaveError(f"{target} could not be written ({error}); what was there before is as it was") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _make_staging(target: Path) -> Path:
    if not (target.is_dir() and _must_stay(target)):
        try:
            return Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        except OSError:  # the parent may be closed to us
            if not target.is_dir():
                raise
    return Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target))


def _must_stay(target: Path) -> bool:
    """A mount point cannot be replaced, and the working directory would be pulled away from under the process."""
    return target.stat().st_dev != target.parent.stat().st_dev or target.samefile(os.curdir)


def _publish(staging: Path, target: Path, companions: Mapping[str, tuple[str, ...]]) -> None:
    if not target.exists() or not any(target.iterdir()):
        staging.replace(target)
        return
    destinations = {path: target / path.relative_to(staging) for path in _files(staging)}
    for destination in destinations.values():  # whatever can stand in the way is found before the first is replaced
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.is_dir():
            raise SaveError(f"{destination} is a directory, not a file; what was there before is as it was")
    for path, destination in destinations.items():
        for name in companions.get(path.name, ()):
            if not path.with_name(name).exists():
                destination.with_name(name).unlink(missing_ok=True)
    for path, destination in destinations.items():
        path.replace(destination)


def _files(directory: Path) -> list[Path]:
    """All files below a directory, weights first: a description must never be newer than what it describes."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.suffix != ".safetensors", str(path)))


def flush(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _prefix(target: Path) -> str:
    return f".{target.name}.saving-"


def _remove_leftovers(target: Path) -> None:
    """Removes what a killed process left while it wrote the same target."""
    for folder in (target.parent, target):
        for leftover in folder.glob(f"{glob.escape(_prefix(target))}*"):
            shutil.rmtree(leftover, ignore_errors=True)
