"""Exceptions raised within real code, at the n-th of the points where it can fail.

A point is the start of a function of this package (a hook, a merge, a step of a write), an operation of torch that
writes into a tensor or factors one, a call of the operating system that opens a file to write or moves one, and a
safetensors file about to be written. What only tidies up is no point: nobody can tidy up after a failure to tidy up.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import safetensors.torch
from torch.utils._python_dispatch import TorchDispatchMode

import loraga

PACKAGE = str(Path(loraga.__file__).parent)
SYSTEM_CALLS = ("replace", "rename", "link", "mkdir", "chmod", "fsync")
FACTORING = ("linalg_qr", "linalg_svd", "_linalg_svd")
TIDYING = {"uncarry", "detach_offset", "_empty", "__repr__", "__reduce_ex__"}


class Injected(Exception):
    """What no code expects."""


class Point:
    """Counts the points that are passed, and raises at one of them."""

    def __init__(self, number: int | None = None, error: type[BaseException] = Injected) -> None:
        self.number, self.error = number, error
        self.passed: list[str] = []
        self.raised = False

    def __call__(self, where: str) -> None:
        if self.raised:
            return
        self.passed.append(where)
        if len(self.passed) - 1 == self.number:
            self.raised = True
            if where.startswith("os.") and self.error is OSError:
                raise OSError(errno.ENOSPC, f"injected at {where}")
            raise self.error(f"injected at {where}")


def fails(point: Point, operate, *arguments) -> bool:
    """Runs an operation with an error at a point; False if it goes on by another way, as where no links can be made."""
    try:
        with points(point):
            operate(*arguments)
    except BaseException:  # C code may have turned the error into one of its own
        if not point.raised:
            raise
        return True
    assert point.raised, "the point was not reached"
    return False


@contextmanager
def points(point: Point):
    """Makes a block pass its points."""
    with ExitStack() as stack:
        for name in SYSTEM_CALLS:
            stack.enter_context(patch.object(os, name, _counted(point, getattr(os, name), f"os.{name}")))
        for module in (builtins, io):
            stack.enter_context(patch.object(module, "open", _counted_open(point, module.open)))
        stack.enter_context(_Writes(point))
        before = sys.gettrace()
        sys.settrace(_tracer(point))
        try:
            yield point
        finally:
            sys.settrace(before)


def _counted(point, function, name):
    def counted(*args, **kwargs):
        if not any(kwargs.get(each) is not None for each in ("dir_fd", "src_dir_fd")):  # as shutil.rmtree calls them
            point(name)
        return function(*args, **kwargs)

    return counted


def _counted_open(point, function):
    def counted(file, mode="r", *args, **kwargs):
        if set(mode) & set("wxa+"):
            point("os.open")
        return function(file, mode, *args, **kwargs)

    return counted


def _tracer(point):
    save_file = safetensors.torch.save_file.__code__

    def trace(frame, event, _):
        code = frame.f_code
        if event == "call" and (code is save_file or code.co_filename.startswith(PACKAGE)):
            starts = code.co_code[frame.f_lasti + 1] & 3 == 0  # a generator that goes on has another argument there
            if starts and code.co_name not in TIDYING and not code.co_name.startswith("<"):
                point(f"{Path(code.co_filename).stem}.{code.co_name}")

    return trace


class _Writes(TorchDispatchMode):
    def __init__(self, point):
        super().__init__()
        self.point = point

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if function._schema.is_mutable or name in FACTORING:
            self.point(f"torch.{name}")
        return function(*args, **(kwargs or {}))
