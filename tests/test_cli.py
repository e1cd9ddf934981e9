import subprocess
import sys

import pytest

import loraga
from loraga import cli
from loraga.lab.errors import LabError, SettingsError


def fake_run(monkeypatch, effect):
    calls = []

    def run(folder, **options):
        calls.append((folder, options))
        if effect is not None:
            raise effect

    monkeypatch.setattr("loraga.lab.demo_console.run", run)
    return calls


def test_demo_hands_its_options_on_and_ends_with_0(monkeypatch, tmp_path):
    calls = fake_run(monkeypatch, None)

    assert cli.main(["demo", "--output", str(tmp_path), "--steps", "7", "--seed", "3", "--quick"]) == 0
    assert calls == [(tmp_path, {"steps": 7, "seed": 3, "quick_run": True})]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LabError("the package is missing"), 1),
        (loraga.BatchError("batch 3: the loss is nan"), 1),
        (SettingsError("other settings"), 2),
        (OSError(28, "No space left on device"), 1),
        (ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_becomes_one_line_and_an_exit_code(monkeypatch, capsys, error, code):
    fake_run(monkeypatch, error)

    assert cli.main(["demo"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("loraga: ")
    assert printed.err.count("\n") == 1


def test_an_error_of_several_lines_still_becomes_one(monkeypatch, capsys):
    fake_run(monkeypatch, LabError("first\nsecond"))

    cli.main(["demo"])

    assert capsys.readouterr().err == "loraga: first second\n"


def test_a_programming_error_keeps_its_traceback(monkeypatch):
    fake_run(monkeypatch, ZeroDivisionError("a bug"))

    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["demo"])


@pytest.mark.parametrize(
    "arguments", [[], ["unknown"], ["demo", "--steps", "0"], ["demo", "--steps", "x"], ["demo", "--seed", "-1"]]
)
def test_wrong_use_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(arguments)

    assert "usage: loraga" in capsys.readouterr().err


def test_version_is_the_packages():
    done = subprocess.run([sys.executable, "-m", "loraga.cli", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout == f"loraga {loraga.__version__}\n"
