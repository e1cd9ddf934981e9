"""Tests of `make mutants` itself: that every defect on the list applies, and that it tells one that no test sees."""

import ast
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from tests.mutants.defects import read, why_unusable

ROOT = Path(__file__).parents[1]
LIST = read(ROOT / "tests" / "mutants" / "defects.toml")

SOURCE = """
def area(width, height):
    return width * height


def half(number):
    return number / 2
"""
TESTS = """
import os, subprocess, sys, time
from pathlib import Path

import rectangles


def test_an_area_is_a_product():
    assert rectangles.area(3, 4) == 12


def test_a_new_process_has_the_same_area():
    code = "import rectangles; print(rectangles.area(5, 6))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "30\\n"


def test_it_waits_where_it_is_told_to():
    if rectangles.area(0, 0):
        Path(os.environ["WAITING"]).write_text(f"{os.getpid()} {Path.cwd()} {rectangles.__file__}")
        time.sleep(60)
"""
DEFECTS = {
    "is caught": 'find = "width * height", replace = "width + height"',
    "survives": 'find = "number / 2", replace = "number / 3"',
    "is no Python": 'find = "number / 2", replace = "number /"',
    "names nothing": 'find = "width * height", replace = "width * hieght"',
    "does not apply": 'find = "number / 4", replace = "number"',
    "applies twice": 'find = "return", replace = "yield"',
    "hangs": 'find = "width * height", replace = "width * height if width else 1"',
}


@cache
def names_in(file):
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("defect", LIST.defects, ids=lambda defect: defect.title)
def test_a_defect_applies_to_the_source_as_it_is(defect):
    assert why_unusable(defect, LIST.source) is None
    text = (LIST.source / defect.file).read_text(encoding="utf-8").replace(defect.find, defect.replace)
    compile(text, defect.file, "exec")
    for test in defect.tests:
        file, _, name = test.partition("::")
        assert (ROOT / "tests" / file).is_file()
        assert not name or name.partition("[")[0] in names_in(ROOT / "tests" / file)


def test_there_are_enough_defects_to_mean_something():
    assert len({(defect.file, defect.find, defect.replace) for defect in LIST.defects}) == len(LIST.defects) >= 45


@pytest.fixture
def project(tmp_path):
    """A project of one small module, and a function that writes its list of defects."""
    (tmp_path / "src" / "rectangles").mkdir(parents=True)
    (tmp_path / "src" / "rectangles" / "__init__.py").write_text("from .sizes import area\n")
    (tmp_path / "src" / "rectangles" / "sizes.py").write_text(SOURCE)
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    (tmp_path / "tests" / "test_sizes.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib']\n")

    def write(*names, tests='["test_sizes.py"]'):
        entries = "\n".join(f'"{name}" = {{ {DEFECTS[name]}, tests = {tests} }}' for name in names)
        file = tmp_path / "tests" / "mutants" / "defects.toml"
        file.write_text(f'package = "rectangles"\nimports = []\n[defects."sizes.py"]\n{entries}\n')
        return [sys.executable, "-m", "tests.mutants", "--list", str(file)]

    return write


def environment(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(scratch), "WAITING": str(tmp_path / "waiting"), "PYTHONDONTWRITEBYTECODE": "1"}


def files(tmp_path):
    return sorted(path for path in tmp_path.rglob("*") if path.name not in ("scratch", "waiting"))


def run(command, tmp_path):
    """Exit status and the lines that were printed; nothing is left behind."""
    before = files(tmp_path)
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert files(tmp_path) == before
    assert (tmp_path / "src" / "rectangles" / "sizes.py").read_text() == SOURCE
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_defect_that_is_caught_is_told_with_the_test(project, tmp_path):
    status, said = run(project("is caught"), tmp_path)
    assert status == 0
    assert said[0].endswith("tests/test_sizes.py: 3 pass")
    assert said[1].endswith("sizes.py: is caught: caught by tests/test_sizes.py::test_an_area_is_a_product")
    assert said[2].startswith("1 defects, 1 caught")


def test_a_process_that_a_test_starts_sees_the_defect_too(project, tmp_path):
    test = "test_sizes.py::test_a_new_process_has_the_same_area"
    status, said = run(project("is caught", tests=f'["{test}"]'), tmp_path)
    assert status == 0
    assert said[1].endswith(f"caught by tests/{test}")


def test_a_defect_that_no_test_sees_is_told_and_the_status_is_one(project, tmp_path):
    status, said = run(project("survives", "is caught"), tmp_path)
    assert status == 1
    assert any(line.endswith("sizes.py: survives: SURVIVED 3 tests") for line in said)
    assert said[-2].startswith("2 defects, 1 caught")
    assert said[-1] == "sizes.py: survives: SURVIVED 3 tests"


@pytest.mark.parametrize("name", ["does not apply", "applies twice"])
def test_a_defect_that_does_not_apply_is_an_error_before_anything_is_run(project, tmp_path, name):
    status, said = run(project("is caught", name), tmp_path)
    assert status == 1
    assert len(said) == 1
    assert f"sizes.py: {name}: does not apply" in said[0]


@pytest.mark.parametrize(
    ("name", "why"), [("is no Python", "the process ended with 1"), ("names nothing", "NameError in tests/test_sizes")]
)
def test_a_replacement_that_is_no_code_does_not_count_as_caught(project, tmp_path, name, why):
    status, said = run(project(name), tmp_path)
    assert status == 1
    assert f"sizes.py: {name}: NO VERDICT: {why}" in said[1]
    assert said[-1].startswith(f"sizes.py: {name}: NO VERDICT")


def test_a_defect_that_hangs_does_not_count_as_caught(project, tmp_path):
    command = [*project("hangs", tests='["test_sizes.py::test_it_waits_where_it_is_told_to"]'), "--limit", "2"]
    status, said = run(command, tmp_path)
    assert status == 1
    assert "sizes.py: hangs: NO VERDICT: no end within 2 s" in said[-1]


def test_tests_that_fail_without_a_defect_are_an_error_and_no_defect_is_run(project, tmp_path):
    command = project("is caught", tests='["test_sizes.py", "test_others.py"]')
    (tmp_path / "tests" / "test_others.py").write_text("def test_it_fails():\n    assert not 'ever'\n")
    status, said = run([*command, "--at-once", "1"], tmp_path)
    assert status == 1
    assert "test_others.py: fails without a defect: tests/test_others.py::test_it_fails" in "\n".join(said)
    assert "caught" not in "\n".join(said)


def test_a_test_that_is_not_there_is_an_error(project, tmp_path):
    status, said = run(project("is caught", tests='["test_sizes.py::test_nothing"]'), tmp_path)
    assert status == 1
    assert "tests/test_sizes.py: pytest ended with" in said[0].replace("test_sizes.py::test_nothing", "test_sizes.py")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_what_was_started_and_leaves_nothing(project, tmp_path, number):
    command = project("hangs", tests='["test_sizes.py::test_it_waits_where_it_is_told_to"]')
    started = subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    waiting, until = tmp_path / "waiting", time.monotonic() + 30
    while not (waiting.exists() and waiting.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    fork, folder, imported = waiting.read_text().split()
    started.send_signal(number)
    assert started.wait(30) == 130
    assert started.communicate()[1] == ""
    assert Path(folder) == tmp_path
    assert not Path(imported).is_relative_to(tmp_path / "src")
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(ProcessLookupError, match="No such process"):
        os.kill(int(fork), 0)
