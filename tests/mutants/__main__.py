"""Applies each deliberate defect to a copy of the source, and names the test that fails for it.

Exits 0 if the tests pass without a defect and every defect is caught by one; else 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .defects import copy_source, read, why_unusable
from .forks import Job, run_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .defects import Defect, DefectList
    from .forks import Verdict

LOG_LINES = 60  # of a job that did not do what it should


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(words)
    whole = read(arguments.list)
    chosen = [each for each in whole.defects if all(word in each.title for word in arguments.only)]
    if unusable := {each.title: why for each in chosen if (why := why_unusable(each, whole.source)) is not None}:
        for title, why in unusable.items():
            print(f"{title}: does not apply: {why}")
        return 1
    if not chosen:
        print(f"no defect is named {' '.join(arguments.only)}")
        return 1
    began = time.monotonic()
    for name in whole.imports:
        importlib.import_module(name)
    gc.freeze()  # else each fork's first collection copies what is shared
    with tempfile.TemporaryDirectory(prefix="loraga-mutants-") as folder:
        Path(folder).chmod(0o755)  # tests that write as another user must get in
        if not _pass_without(whole, chosen, Path(folder), arguments.at_once, arguments.limit):
            return 1
        escaped = _run_defects(whole, chosen, Path(folder), arguments.at_once, arguments.limit)
    print(f"{len(chosen)} defects, {len(chosen) - len(escaped)} caught, {time.monotonic() - began:.0f} s")
    for title, what in escaped.items():
        print(f"{title}: {what}")
    return 1 if escaped else 0


def _pass_without(whole: DefectList, chosen: list[Defect], folder: Path, at_once: int, limit: float) -> bool:
    """Runs each test that is named, on the source as it is: what fails without a defect tells nothing about one."""
    source = folder / "source"
    copy_source(whole.source, source, None)
    files: dict[str, dict[str, None]] = {}
    for test in (test for defect in chosen for test in defect.tests):
        files.setdefault(test.partition("::")[0], {})[test] = None
    jobs = []
    for number, (file, tests) in enumerate(files.items()):
        named = (file,) if file in tests else tuple(tests)
        jobs.append(_job(whole, source, named, folder / f"without-{number}", stop_at_first=False))
    all_pass = True
    for count, (job, verdict) in enumerate(run_all(jobs, at_once, limit), start=1):
        wrong = verdict.error or (f"fails without a defect: {verdict.failed}" if verdict.failed else None)
        file = job.tests[0].partition("::")[0]
        print(
            f"[{count:>2}/{len(jobs)}] {verdict.seconds:5.1f} s  {file}: {wrong or f'{verdict.passed} pass'}",
            flush=True,
        )
        if wrong:
            _print_log(job)
            all_pass = False
    return all_pass


def _run_defects(whole: DefectList, chosen: list[Defect], folder: Path, at_once: int, limit: float) -> dict[str, str]:
    """Runs every defect's tests with it; gives {defect: why it does not count as caught}."""
    jobs, defects = [], {}
    for number, defect in enumerate(chosen):
        source = folder / f"source-{number}"
        copy_source(whole.source, source, defect)
        jobs.append(_job(whole, source, defect.tests, folder / f"defect-{number}", stop_at_first=True))
        defects[jobs[-1]] = defect
    escaped = {}
    for count, (job, verdict) in enumerate(run_all(jobs, at_once, limit), start=1):
        title, what = defects[job].title, _outcome(verdict)
        print(f"[{count:>2}/{len(jobs)}] {verdict.seconds:5.1f} s  {title}: {what}", flush=True)
        if verdict.error is not None or verdict.failed is None:
            escaped[title] = what
        if verdict.error is not None:
            _print_log(job)
    return escaped


def _outcome(verdict: Verdict) -> str:
    if verdict.error is not None:
        return f"NO VERDICT: {verdict.error}"
    return f"caught by {verdict.failed}" if verdict.failed else f"SURVIVED {verdict.passed} tests"


def _job(whole: DefectList, source: Path, tests: tuple[str, ...], scratch: Path, stop_at_first: bool) -> Job:
    return Job(whole.package, source, tuple(f"tests/{test}" for test in tests), whole.root, scratch, stop_at_first)


def _print_log(job: Job) -> None:
    lines = job.log.read_text(errors="replace").splitlines() if job.log.is_file() else []
    print("\n".join(f"    {line}" for line in lines[-LOG_LINES:]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("only", nargs="*", help="words that the name of a defect or its file has")
    parser.add_argument("--list", type=Path, default=Path(__file__).with_name("defects.toml"))
    parser.add_argument("--at-once", type=int, default=2, help="processes")
    parser.add_argument("--limit", type=float, default=300, help="seconds that one defect's tests may take")
    return parser


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it otherwise
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
