"""pytest runs in forks of one process that has imported the libraries, but never the package under test.

Importing costs seconds and forking milliseconds. Each fork imports the package from a source directory of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

POLL_SECONDS = 0.02
NOT_A_TESTS_VERDICT = (NameError, ImportError, SyntaxError)  # the text that replaces is wrong, which any test would see


@dataclass(frozen=True)
class Job:
    """One run of pytest.

    Attributes:
        package: must be imported from `source`.
        source: goes to the head of the import path, also of processes that the tests start.
        tests: what to run, relative to `root`.
        root: the project.
        scratch: an own directory for logs and temporary files.
        stop_at_first: end with the first failure.
    """

    package: str
    source: Path
    tests: tuple[str, ...]
    root: Path
    scratch: Path
    stop_at_first: bool

    @property
    def log(self) -> Path:
        return self.scratch / "log"

    @property
    def verdict(self) -> Path:
        return self.scratch / "verdict.json"


@dataclass(frozen=True)
class Verdict:
    """What came out of a job.

    Attributes:
        passed: how many tests did.
        failed: id of the first test that failed, or None.
        error: why this is no verdict of the tests, or None.
        seconds: wall time.
    """

    passed: int
    failed: str | None
    error: str | None
    seconds: float


class Watch:
    """A pytest plugin that keeps what a verdict needs."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: str | None = None
        self.error: str | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """A failure is enough: hypothesis need not look for its smallest example, which takes most of the time."""
        if "hypothesis" in sys.modules:  # conftest.py has loaded the project's profile
            from hypothesis import Phase, settings

            settings.register_profile("without shrinking", settings.default, phases=[Phase.explicit, Phase.generate])
            settings.load_profile("without shrinking")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report: Any = yield
        self.passed += report.passed and report.when == "call"
        if report.failed and self.failed is None:
            self.failed = item.nodeid
            if call.excinfo is not None and call.excinfo.errisinstance(NOT_A_TESTS_VERDICT):
                self.error = f"{call.excinfo.typename} in {item.nodeid}: {call.excinfo.value}"
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.error = f"{report.nodeid or 'a test'} cannot be collected"


def run_all(jobs: Sequence[Job], at_once: int, limit: float) -> Iterator[tuple[Job, Verdict]]:
    """Runs jobs, some at once, and yields each when it ends; whatever ends this generator ends them all."""
    waiting, running = deque(jobs), dict[int, tuple[Job, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                running[_fork(job)] = job, time.monotonic()
            for pid, (job, since) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                seconds = time.monotonic() - since
                if ended or seconds > limit:
                    _end(pid)
                    del running[pid]
                    yield job, _verdict(job, status, seconds, None if ended else limit)
            time.sleep(POLL_SECONDS)
    finally:
        for pid in running:
            _end(pid)


def _fork(job: Job) -> int:
    job.scratch.mkdir(parents=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _run(job)
    with suppress(PermissionError, ProcessLookupError):  # it was faster
        os.setpgid(pid, pid)
    return pid


def _end(pid: int) -> None:
    """Kills a fork with all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # it was waited for
        os.waitpid(pid, 0)


def _run(job: Job) -> NoReturn:
    """The fork's life."""
    status = 1
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _redirect(job.log)
        _see_only(job)
        watch = Watch()
        ended = pytest.main(_arguments(job), plugins=[watch])
        if watch.error is None and ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            watch.error = f"pytest ended with {ended!r}"
        if watch.error is None and ended == pytest.ExitCode.OK and not watch.passed:
            watch.error = "no test ran"
        job.verdict.write_text(json.dumps(vars(watch)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _redirect(log: Path) -> None:
    nothing, written = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(nothing, 0)
    os.dup2(written, 1)
    os.dup2(written, 2)


def _see_only(job: Job) -> None:
    """Makes this process, and those that it starts, import the package from the job's source."""
    assert job.package not in sys.modules
    os.chdir(job.root)
    os.environ["PYTHONPATH"] = str(job.source)
    os.environ["TMPDIR"] = str(job.scratch)
    tempfile.tempdir = None  # TMPDIR is read anew
    sys.path.insert(0, str(job.source))
    found = importlib.import_module(job.package).__file__
    if found is None or not Path(found).is_relative_to(job.source):
        raise ImportError(f"{job.package} was imported from {found}, not from {job.source}")


def _arguments(job: Job) -> list[str]:
    # autoloaded plugins want to rewrite packages that are imported already
    plugins = ["--disable-plugin-autoload", "-p", "no:cacheprovider"]
    folder = [f"--rootdir={job.root}", f"--basetemp={job.scratch / 'pytest'}"]
    return [*plugins, *folder, "-q", *(["-x"] if job.stop_at_first else []), *job.tests]


def _verdict(job: Job, status: int, seconds: float, limit: float | None) -> Verdict:
    if limit is not None:
        return Verdict(0, None, f"no end within {limit:g} s", seconds)
    if not job.verdict.is_file():
        return Verdict(0, None, f"the process ended with {os.waitstatus_to_exitcode(status)}", seconds)
    return Verdict(**json.loads(job.verdict.read_text()), seconds=seconds)
