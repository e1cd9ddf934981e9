"""Runs a generated program with its tests in a process of its own that cannot do harm: Program --Limits--> Ran.

What holds it, and against what:

| against                            | by                                                                             |
|------------------------------------|--------------------------------------------------------------------------------|
| looping                            | RLIMIT_CPU; a limit on real time, after which the process group is killed      |
| allocating                         | RLIMIT_AS                                                                      |
| forking, threads, signals, tracing | seccomp: no such system call                                                   |
| reading, listing, writing files    | seccomp: nothing can be opened; an empty working directory, which is removed   |
| sockets                            | seccomp: none can be made, of any family                                       |
| reading secrets                    | an empty environment; neither files nor /proc can be opened                    |
| printing without end               | RLIMIT_FSIZE on the file that the output goes to                               |
| leaving before the tests are over  | a token, drawn for each run, that only the last step writes                    |

The kernel sees to all but the last, so that it holds against native code too (`confined` says how). It is Linux's:
elsewhere nothing is run. What it cannot do is tell a right program from one that cheats in its own process: one that
searches its memory for the token, or whose results claim to equal everything, passes, as in HumanEval's own checker.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from ..errors import LabError
from . import confined

Outcome = Literal[
    "passed", "failed", "timed out", "out of memory", "forbidden", "too much output", "left early", "crashed"
]
LINES, CHARACTERS = 20, 2000  # of the output that are kept: the last
MEBIBYTE = 2**20
NOT_RUN = "generated programs are not run, since nothing would hold them back on this machine"


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        processor_seconds: of processor time, with the interpreter's start.
        seconds: of real time: several times that, so that a busy machine fails no right program.
        memory: address space in bytes.
        output: bytes of what it prints.
    """

    processor_seconds: int = 5
    seconds: float = 20
    memory: int = 1024 * MEBIBYTE
    output: int = MEBIBYTE

    def __str__(self) -> str:
        return (
            f"{self.processor_seconds} s of processor time, {self.seconds:g} s of real time, "
            f"{self.memory // MEBIBYTE} MiB of memory, {self.output // MEBIBYTE} MiB of output, no files, no other "
            "processes, no network"
        )


@dataclass(frozen=True)
class Ran:
    """How a program did.

    Attributes:
        outcome: "passed" if program and tests ran to their end; "forbidden" if it asked for what it may not.
        output: the last lines of what it wrote, its traceback among them.
    """

    outcome: Outcome
    output: str

    @property
    def passed(self) -> bool:
        """Whether it passed."""
        return self.outcome == "passed"


OUTCOMES: dict[int, Outcome] = {
    confined.FAILED: "failed",
    confined.FORBIDDEN: "forbidden",
    confined.OUT_OF_MEMORY: "out of memory",
    confined.TOO_MUCH_OUTPUT: "too much output",
    confined.LEFT_EARLY: "left early",
    0: "left early",
}


def run_program(program: str, test: str, limits: Limits | None = None) -> Ran:
    """Runs a program, and then its tests.

    Args:
        program: Python; modules of the standard library can be imported.
        test: Python that sees the program's names, and raises if the program is wrong.
        limits: by default Limits().

    Returns:
        How it did.

    Raises:
        LabError: if this machine cannot hold a program back; it is not run then.
    """
    if reason := confined.why_no_lock():
        raise LabError(f"{NOT_RUN}: {reason}")
    limits = limits or Limits()
    token = secrets.token_hex(16)
    read_end, write_end = os.pipe()
    task = {
        "program": program,
        "test": test,
        "token": token,
        "report_to": write_end,
        "limits": {
            "RLIMIT_CPU": limits.processor_seconds,
            "RLIMIT_AS": limits.memory,
            "RLIMIT_FSIZE": limits.output,
            "RLIMIT_CORE": 0,
        },
    }
    with (
        os.fdopen(read_end, "rb") as report,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryDirectory(prefix="loraga-program-") as empty,
    ):
        given.write(json.dumps(task).encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(Path(confined.__file__))],
                stdin=given, stdout=output, stderr=output, cwd=empty, env={}, pass_fds=[write_end],
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(write_end)
        exit_code = _ended(process, limits.seconds)
        said = _last(output)
        if exit_code == confined.UNPROTECTED:
            raise LabError(f"{NOT_RUN}: {(said.splitlines() or ['no reason given'])[-1]}")
        if exit_code == 0 and report.read() == token.encode():
            return Ran("passed", said)
        return Ran(_outcome(exit_code), said)


def require_lock() -> None:
    """Looks that this machine holds a program back, by one that does nothing.

    Raises:
        LabError: if it does not.
    """
    run_program("", "")


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code of a process, which is gone afterwards with its group; None if it ran past its time."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _outcome(exit_code: int | None) -> Outcome:
    if exit_code in (None, -signal.SIGXCPU, -signal.SIGKILL):  # the last two are RLIMIT_CPU's, soft and hard
        return "timed out"
    return OUTCOMES.get(exit_code or 0, "crashed")


def _last(output: IO[bytes]) -> str:
    """The last lines of a file."""
    output.seek(max(0, output.seek(0, os.SEEK_END) - CHARACTERS))
    return "\n".join(output.read().decode(errors="replace").splitlines()[-LINES:])
