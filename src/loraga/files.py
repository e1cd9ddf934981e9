"""Writing a directory or a file so that a killed process or a full disk leaves the last complete one.

    written beside its place --flushed--> moved there in one step, or exchanged with what is there

Processes that write the same place do so one after the other: it holds what one of them wrote, and none tidies away
what another is still writing.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import socket
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from .errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux's renameat2
LONGEST_SAVE = 24 * 3600  # seconds after which what nobody has touched is a leftover, whoever made it


@contextmanager
def staged_directory(
    target: str | os.PathLike[str], companions: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Path]:
    """Gives an empty directory to write into, and moves its files to the target when all of them are on the disk.

    A target that does not exist, or is empty, appears at once. One that exists is exchanged in one step for a directory
    that holds the new files and its other ones. Where that is not possible (not on Linux, a mount point, the working
    directory, a parent that is closed, a subdirectory with nothing new in it, other owners) its files are replaced one
    by one: an error undoes it, and a process killed in between leaves whole files, old and new ones, the weights first.

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
    with _explained(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target)
            staging = _make_staging(target)
            staging.chmod(0o755)
            yield staging
            for path in _files(staging):
                flush(path)
            with _alone_in(target.parent):
                _publish(staging, target, companions or {})
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def staged_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty file to write, and moves it to the target when it is on the disk.

    Args:
        target: the file to write.

    Yields:
        The file beside it.

    Raises:
        SaveError: if it cannot be written; the target is then as it was.
    """
    target = Path(target)
    staged: Path | None = None
    with _explained(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target)
            handle, name = tempfile.mkstemp(prefix=_own_prefix(target), dir=target.parent)
            os.close(handle)
            staged = Path(name)
            yield staged
            flush(staged)
            staged.replace(target)
        finally:
            if staged is not None:
                staged.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise SaveError(f"{target} could not be written ({error}); what was there before is as it was") from error


def _make_staging(target: Path) -> Path:
    if not (target.is_dir() and _must_stay(target)):
        try:
            return Path(tempfile.mkdtemp(prefix=_own_prefix(target), dir=target.parent))
        except OSError:  # the parent may be closed to us
            if not target.is_dir():
                raise
    return Path(tempfile.mkdtemp(prefix=_own_prefix(target), dir=target))


def _must_stay(target: Path) -> bool:
    """A mount point cannot be replaced, and the working directory would be pulled away from under the process."""
    return target.stat().st_dev != target.parent.stat().st_dev or target.samefile(os.curdir)


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Waits until no other process moves files within a directory; goes on where directories cannot be locked."""
    try:
        import fcntl

        handle = os.open(directory, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _publish(staging: Path, target: Path, companions: Mapping[str, tuple[str, ...]]) -> None:
    if not target.exists() or not any(target.iterdir()):
        staging.replace(target)
        return
    destinations = {path: target / path.relative_to(staging) for path in _files(staging)}
    for destination in destinations.values():  # whatever can stand in the way is found before the first is replaced
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.is_dir():
            raise SaveError(f"{destination} is a directory, not a file; what was there before is as it was")
    stale = [
        destination.with_name(name)
        for path, destination in destinations.items()
        for name in companions.get(path.name, ())
        if not path.with_name(name).exists()
    ]
    if not (staging.parent == target.parent and _exchange(staging, target, stale)):
        _replace_one_by_one(destinations, stale, Path(tempfile.mkdtemp(dir=staging)))


def _exchange(staging: Path, target: Path, stale: list[Path]) -> bool:
    """Completes the staging directory by the target's other files and swaps the two; False where that cannot be."""
    if not sys.platform.startswith("linux"):
        return False
    one, other = staging.stat(), target.stat()
    if (one.st_uid, one.st_gid) != (other.st_uid, other.st_gid):
        return False
    try:
        if not _link_other_files(target, staging, stale):
            return False
        shutil.copymode(target, staging)
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # no hard links on this file system; an old C library
        return False
    return rename(AT_FDCWD, os.fsencode(staging), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE) == 0


def _link_other_files(target: Path, staging: Path, stale: list[Path]) -> bool:
    """False at a subdirectory with nothing new in it: somebody may be writing there."""
    for there in target.iterdir():
        here = staging / there.name
        if there.is_dir() and not there.is_symlink():
            if not (here.is_dir() and _link_other_files(there, here, stale)):
                return False
        elif not here.exists() and there not in stale:
            os.link(there, here, follow_symlinks=False)
    return True


def _replace_one_by_one(destinations: Mapping[Path, Path], stale: Iterable[Path], before: Path) -> None:
    """Moves files to their destinations and removes stale ones; an error undoes it from copies in `before`."""
    changed = [*destinations.values(), *stale]
    kept = {path: before / str(number) for number, path in enumerate(changed) if os.path.lexists(path)}
    for path, copy in kept.items():
        try:
            os.link(path, copy, follow_symlinks=False)
        except OSError:
            shutil.copy2(path, copy, follow_symlinks=False)
    try:
        for path in stale:
            path.unlink(missing_ok=True)
        for path, destination in destinations.items():
            path.replace(destination)
    except BaseException:
        for path in changed:
            kept[path].replace(path) if path in kept else path.unlink(missing_ok=True)
        raise


def _files(directory: Path) -> list[Path]:
    """All files below a directory, weights first: a description must never be newer than what it describes."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.suffix != ".safetensors", str(path)))


def _prefix(target: Path) -> str:
    return f".{target.name}.saving-"


def _own_prefix(target: Path) -> str:
    return f"{_prefix(target)}{socket.gethostname()}-{os.getpid()}-"


def _remove_leftovers(target: Path) -> None:
    """Removes what a killed process left while it wrote the same target."""
    for folder in (target.parent, target):
        for leftover in folder.glob(f"{glob.escape(_prefix(target))}*"):
            with suppress(OSError):  # its process may be removing it itself
                if _is_abandoned(leftover.name.removeprefix(_prefix(target)), leftover.stat().st_mtime):
                    leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover, ignore_errors=True)


def _is_abandoned(owner: str, touched: float) -> bool:
    host, _, process = owner.rpartition("-")[0].rpartition("-")
    if not process.isdigit():
        return True  # of a version that did not write its process there
    if time.time() - touched > LONGEST_SAVE:
        return True
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)  # asks whether it is there
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False
