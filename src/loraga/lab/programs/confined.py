"""Runs one Python program that nobody has read, in a process that can do nothing but compute.

`program` starts this file as a script (`python -I -S`), with an empty environment and the program on its input:

    input --limits, imports--> locked --program, then its tests--> the token, if all of it ran to its end

Locked means a seccomp filter of the Linux kernel, which lets through the system calls below and answers every other one
with EPERM: memory, time, its own signals, and reading and writing what is open, which is its output. So no file can be
opened, listed or removed, no process or thread started, none signalled or traced, no socket made, no limit raised;
by no means, ctypes and native code among them, and by root as little as by anybody. Modules that the program names in
import statements are imported before, as far as they are the standard library's: afterwards nothing can be read.

Nothing of the package is imported here.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import errno
import importlib
import json
import os
import signal
import struct
import sys
import traceback
import types

FAILED, UNPROTECTED, FORBIDDEN, OUT_OF_MEMORY, TOO_MUCH_OUTPUT, LEFT_EARLY = 1, 70, 71, 72, 73, 74  # exit codes

# What the standard library imports only when it is first used.
LAZY = ("__future__", "_strptime", "calendar", "decimal", "encodings.ascii", "encodings.latin_1", "encodings.utf_16",
        "linecache", "locale", "stringprep", "tokenize", "unicodedata", "warnings", "_pylong")  # fmt: skip
# Imported, they open a browser or a window, or run a program.
NOT_TO_IMPORT = frozenset({"antigravity", "ensurepip", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle",
                           "turtledemo"})  # fmt: skip

# {system call: its number on x86_64 and on aarch64, None where there is none}
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "close": (3, 57), "lseek": (8, 62),
    "fstat": (5, 80), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "mremap": (25, 216), "madvise": (28, 233), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "futex": (202, 98), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "getrusage": (98, 165), "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "select": (23, None),
    "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73), "getrandom": (318, 278), "getpid": (39, 172),
    "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "uname": (63, 160), "sysinfo": (99, 179), "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, the kernel's AUDIT_ARCH

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2  # Linux's prctl.h, seccomp.h
KILL, REFUSE, ALLOW = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of the filter's machine (linux/filter.h)
NUMBER, ARCHITECTURE = 0, 4  # where they stand in what the filter is given


def main() -> None:
    """Reads what is to be run from the input, and ends the process with an exit code that says how it went."""
    with open(0, encoding="utf-8") as given:  # closed at the end: the program has no input
        task = json.load(given)
    report, leave, passed = os.write, os._exit, task["token"].encode()  # the program can replace the modules' own
    classify, flush = _exit_code, sys.stdout.flush
    try:
        limit(task["limits"])
        preload(task["program"] + "\n" + task["test"])
        lock()
    except BaseException:
        traceback.print_exc()
        leave(UNPROTECTED)
    try:
        execute(task["program"], task["test"])
        with contextlib.suppress(ValueError):  # the program has closed it
            flush()
    except BaseException as error:
        with contextlib.suppress(BaseException):
            report(2, "".join(traceback.format_exception(without_own_frames(error))).encode(errors="replace"))
        leave(classify(error))
    report(task["report_to"], passed)
    leave(0)


def limit(limits: dict[str, int]) -> None:
    """Limits processor time, memory, and the size of what is written; once locked, no limit can be raised."""
    import resource  # not on Windows, where the rest of this file can be imported

    for name, value in limits.items():
        kind = getattr(resource, name)
        resource.setrlimit(kind, (value, value + 1 if name == "RLIMIT_CPU" else value))


def preload(source: str) -> None:
    """Imports the modules of the standard library that a text names in import statements, and those imported lazily."""
    for name in (*LAZY, *named_modules(source)):
        parts = name.split(".")
        is_public = name in LAZY or not any(part.startswith("_") for part in parts)
        if is_public and parts[0] in sys.stdlib_module_names and parts[0] not in NOT_TO_IMPORT:
            with contextlib.suppress(Exception, SystemExit):  # if it matters, the program's own import fails
                importlib.import_module(name)


def named_modules(source: str) -> list[str]:
    """The modules in a text's import statements; `from a import b` may mean a.b too."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # running it says so
        return []
    found = [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    return found


def why_no_lock() -> str | None:
    """Why this machine cannot have the lock, as far as that is known beforehand; None if nothing speaks against it."""
    if sys.platform == "linux" and os.uname().machine in MACHINES and sys.maxsize > 2**32:
        return None
    return f"that takes 64-bit Linux on {' or '.join(MACHINES)}"


def lock() -> None:
    """Gives up every system call but those above, for good, and looks that it holds.

    Raises:
        RuntimeError: if this machine has no such lock.
    """
    if reason := why_no_lock():
        raise RuntimeError(reason)
    column, architecture = MACHINES[os.uname().machine]
    instructions = _filter([numbers[column] for numbers in ALLOWED.values()], architecture)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    program = Program(len(instructions) // 8, instructions)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for option, value, more in (
        (PR_SET_PDEATHSIG, signal.SIGKILL, None),
        (PR_SET_NO_NEW_PRIVS, 1, None),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)),
    ):
        if prctl(option, ctypes.c_ulong(value), more or ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
            raise RuntimeError(f"the kernel refuses prctl {option}: {os.strerror(ctypes.get_errno())}")
    for forbidden in (lambda: os.open("/", os.O_RDONLY), os.fork):
        try:
            forbidden()
        except PermissionError:
            continue
        raise RuntimeError("the kernel took the lock, but it does not hold")


def _filter(numbers: list[int | None], architecture: int) -> bytes:
    """The filter as the kernel reads it, 8 bytes an instruction: one comparison for each allowed call."""
    allowed = [number for number in numbers if number is not None]
    lines = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    lines += [(JUMP_IF_EQUAL, len(allowed) - index, 0, number) for index, number in enumerate(allowed)]
    lines += [(RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def execute(program: str, test: str) -> None:
    """Runs a program, and then its tests in the same namespace, with the builtins as they were and nothing traced."""
    module = types.ModuleType("program")  # not __main__: what a program does as a script is not asked for
    sys.modules["program"] = module
    names, own = vars(module), vars(builtins)
    before = dict(own)
    run, untraced = exec, (sys.settrace, sys.setprofile)  # the program can replace these too
    tests = compile(test, "<test>", "exec", dont_inherit=True)
    run(compile(program, "<program>", "exec", dont_inherit=True), names)
    for switch_off in untraced:
        switch_off(None)
    own.update(before)
    run(tests, names)


def without_own_frames(error: BaseException) -> BaseException:
    """The error, with a traceback that begins in the program."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return error.with_traceback(trace)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return LEFT_EARLY
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, PermissionError):
        return FORBIDDEN
    return TOO_MUCH_OUTPUT if isinstance(error, OSError) and error.errno == errno.EFBIG else FAILED


if __name__ == "__main__":
    main()
