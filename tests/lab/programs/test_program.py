"""Tests that a generated program can do nothing but compute, and that it passes only if its tests ran to their end.

Each harmful program here is one that ends well where it succeeds; that it would without the lock is tested too.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loraga.lab.errors import LabError
from loraga.lab.programs import confined, program
from loraga.lab.programs.program import Limits, require_lock, run_program
from tests.humaneval import needs_lock

pytestmark = needs_lock

RIGHT = "def double(x):\n    return 2 * x\n"
CHECK = "assert double(3) == 6"

HARM = {
    "fork": "import os\nif os.fork() == 0:\n    os._exit(0)",
    "start a process": "import os\nos.posix_spawn({python!r}, ['python', '-c', ''], {{}})",
    "replace itself": "import os, signal\nos.execv({python!r}, ['python', '-c', ''])",
    "start a thread": "import threading\nthread = threading.Thread(target=int)\nthread.start()\nthread.join()",
    "write a file outside": "open({file!r}, 'w').write('x')",
    "write a file where it is": "open('file', 'w').write('x')",
    "make a directory": "import os\nos.mkdir('folder')",
    "remove a file": "import os\nos.unlink({doomed!r})",
    "rename a file": "import os\nos.rename({doomed!r}, {file!r})",
    "change a file's mode": "import os\nos.chmod({secret!r}, 0o777)",
    "truncate a file": "import os\nos.truncate({doomed!r}, 0)",
    "read a secret of the home": "assert open({secret!r}).read() == 'hunter2'",
    "read a secret of the environment": "import os\nassert os.environ['SECRET'] == 'hunter2'",
    "read its parent's environment": "import os\nassert open(f'/proc/{{os.getppid()}}/environ', 'rb').read()",
    "list a directory": "import os\nos.listdir('/')",
    "look at a file": "import os\nos.stat({secret!r})",
    "leave its directory": "import os\nos.chdir('/')",
    "open any socket": "import socket\nsocket.socketpair()",
    "open a socket past Python": "import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) >= 0",
    "signal its parent": "import os\nos.kill(os.getppid(), 0)",
    "signal everybody": "import os\nos.killpg(os.getpgid(os.getppid()), 0)",
    "raise its limits": "import resource as r\nr.setrlimit(r.RLIMIT_CORE, r.getrlimit(r.RLIMIT_CORE))",
    "trace a process": "import ctypes\nassert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
    "map memory with a name": "import os\nos.memfd_create('x')",
}  # fmt: skip


@pytest.fixture
def harm(tmp_path, monkeypatch):
    """A function from an entry of HARM to its program, with victims in a home of their own."""
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "doomed").write_text("here")
    victims = {name: str(tmp_path / name) for name in ("secret", "doomed", "file")}
    return lambda name: HARM[name].format(python=sys.executable, **victims)


@pytest.mark.parametrize("name", HARM)
def test_a_program_cannot(name, harm, tmp_path):
    ran = run_program(harm(name), "")
    assert ran.outcome in ("forbidden", "failed"), ran
    assert (tmp_path / "secret").stat().st_mode & 0o777 != 0o777
    assert (tmp_path / "doomed").read_text() == "here"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["doomed", "secret"]


@pytest.mark.parametrize("name", HARM)
def test_a_program_could_without_the_lock(name, harm, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", harm(name)], cwd=tmp_path, capture_output=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_no_server_hears_from_a_program():
    with socket.create_server(("127.0.0.1", 0)) as server:
        call = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5).sendall(b'x')"
        server.settimeout(0.1)
        assert not run_program(call, "").passed
        with pytest.raises(TimeoutError, match="timed out"):
            server.accept()
        subprocess.run([sys.executable, "-c", call], timeout=20, check=True)
        server.accept()[0].close()


def test_a_right_program_passes_and_a_wrong_one_fails_with_its_traceback():
    assert run_program(RIGHT, CHECK) == program.Ran("passed", "")
    ran = run_program(RIGHT.replace("2 *", "3 *"), CHECK)
    assert (ran.passed, ran.outcome) == (False, "failed")
    assert ran.output == 'Traceback (most recent call last):\n  File "<test>", line 1, in <module>\nAssertionError'


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("while True: pass", "timed out"),
        ("import time\ntime.sleep(60)", "timed out"),
        ("try:\n    while True: pass\nexcept BaseException: pass\nwhile True: pass", "timed out"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "timed out"),
        ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timed out"),
        ("held = []\nwhile True: held.append(bytearray(10**7))", "out of memory"),
        ("held = bytearray(2 * 10**9)", "out of memory"),
        ("import mmap\nheld = [mmap.mmap(-1, 10**8) for _ in range(20)]", "failed"),
        ("print('x' * 10**7)", "too much output"),
        ("while True: print('x' * 1000)", "too much output"),
        ("import sys\n[sys.stderr.write('x' * 10**6) for _ in range(9)]", "too much output"),
        ("def deeper(): return deeper()\ndeeper()", "failed"),
        ("import ctypes\nctypes.string_at(0)", "crashed"),
        ("import os\nos.abort()", "crashed"),
        ("def broken(:", "failed"),
        ("x = '\0'", "failed"),
        ("x = '\ud800'", "failed"),
        ("(" * 100_000, "failed"),
    ],
)
def test_a_program_without_end_ends(text, outcome):
    start = time.monotonic()
    ran = run_program(text, "", Limits(processor_seconds=1, seconds=2.5, memory=256 * program.MEBIBYTE))
    assert ran.outcome == outcome, ran
    assert time.monotonic() - start < 10
    assert len(ran.output) <= program.CHARACTERS


@pytest.mark.parametrize(
    "text",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "def double(x):\n    import sys\n    sys.exit()",
        "def double(x):\n    import os\n    os._exit(0)",
        "import os, sys\nos._exit = sys.exit = lambda code=0: None\ndef double(x): return 0",
        "import atexit, os\natexit.register(os._exit, 0)\ndef double(x): return 0",
        "AssertionError = ZeroDivisionError\ndef double(x): return 0",
        "import builtins\nbuiltins.AssertionError = builtins.Exception = int\ndef double(x): return 0",
        "import sys\nsys.excepthook = lambda *about: None\ndef double(x): return 0",
        "import sys\nsys.settrace(lambda *about: None)\ndef double(x): return 0",
        "import os\nfor file in range(3, 30):\n    try: os.write(file, b'a')\n    except OSError: pass\nos._exit(0)",
        "try:\n    double(3)\nexcept: pass",
        "def double(x): raise BaseException",
        "double = None",
        "",
    ],
)
def test_a_wrong_program_does_not_pass_by_leaving_early_or_by_replacing_what_the_tests_use(text):
    assert not run_program(text, CHECK).passed


def test_builtins_are_the_tests_own_again():
    cheat = "import builtins\nbuiltins.vars = dict\n"
    cheat += "builtins.exec = print\nbuiltins.abs = lambda x: 0\ndef double(x): return 7"
    assert run_program(cheat, "assert abs(double(3) - 6) == 0").outcome == "failed"


def test_the_standard_library_can_be_imported_and_used():
    text = """
from __future__ import annotations
import collections.abc, concurrent.futures, dataclasses, datetime, decimal, enum, fractions, functools, hashlib
import heapq, itertools, json, math, os, random, re, statistics, string, sys, typing
from xml import etree
import xml.etree.ElementTree
@dataclasses.dataclass(order=True)
class Point:
    x: float
assert hashlib.md5(b"a").hexdigest()[:4] == "0cc1"
assert datetime.datetime.strptime("2020-02-03", "%Y-%m-%d").day == 3
assert "\\N{BULLET}" == "\u2022" and "ab".encode("utf-16").decode("utf-16") == "ab"
assert __name__ != "__main__"
sys.set_int_max_str_digits(0)
assert len(str(7**20000)) == 16902
"""
    assert run_program(text.replace("\\\\", "\\"), "assert Point(1) < Point(2)") == program.Ran("passed", "")


@pytest.mark.parametrize("name", ["antigravity", "idlelib.idle", "this", "unittest.__main__", "loraga", "torch"])
def test_what_does_more_than_define_things_or_is_not_of_the_standard_library_is_not_imported(name):
    ran = run_program(f"import {name}", "")
    assert not ran.passed
    assert "Zen" not in ran.output


def test_nothing_is_left_running_or_lying_about(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    start = time.monotonic()
    ran = run_program("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)", "", Limits(seconds=0.5))
    assert ran.outcome == "timed out"
    assert time.monotonic() - start < 5
    with pytest.raises(ProcessLookupError, match="No such process"):
        os.kill(int(ran.output), 0)
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_only_the_last_of_the_output_is_kept():
    ran = run_program("for number in range(10_000): print(number)", "")
    assert ran.output.splitlines() == [str(number) for number in range(9_980, 10_000)]


def test_a_machine_without_the_lock_runs_nothing_and_says_so(monkeypatch):
    monkeypatch.setattr(confined, "MACHINES", {})
    with pytest.raises(LabError, match="generated programs are not run, since nothing would hold them back"):
        require_lock()
    with pytest.raises(LabError, match="that takes 64-bit Linux"):
        run_program(RIGHT, CHECK)


def test_a_kernel_that_refuses_the_lock_runs_nothing(tmp_path, monkeypatch):
    """A process whose own filter takes the call that installs filters away, as some containers do."""
    broken = tmp_path / "confined.py"
    broken.write_text(
        Path(confined.__file__)
        .read_text()
        .replace("SECCOMP_MODE_FILTER = 1, 22, 38, 2", "SECCOMP_MODE_FILTER = 1, 22, 38, 99")
    )
    monkeypatch.setattr(confined, "__file__", str(broken))
    with pytest.raises(LabError, match=r"not run.*the kernel refuses prctl 22: Invalid argument"):
        run_program("print('ran')", "")


def test_a_lock_that_does_not_hold_runs_nothing(tmp_path, monkeypatch):
    broken = tmp_path / "confined.py"
    broken.write_text(
        Path(confined.__file__).read_text().replace('"read": (0, 63)', '"openat": (257, 56), "read": (0, 63)')
    )
    monkeypatch.setattr(confined, "__file__", str(broken))
    with pytest.raises(LabError, match="the kernel took the lock, but it does not hold"):
        run_program("print('ran')", "")


HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", confined.MACHINES)
def test_the_filters_numbers_are_the_kernels(machine):
    header = Path("/usr/include") / HEADERS[machine]
    if not header.is_file():
        pytest.skip(f"the kernel's headers are not installed: no {header}")
    listed = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    column = confined.MACHINES[machine][0]
    ours = {name: str(numbers[column]) for name, numbers in confined.ALLOWED.items() if numbers[column] is not None}
    assert ours == {name: listed.get(name) for name in ours}
