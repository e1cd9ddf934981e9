"""Tests that a directory is complete at every moment: processes are really killed, and files really cannot grow."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loraga
from loraga import SaveError
from loraga.files import staged_directory, staged_file
from tests.planted import planted

PACKAGE = Path(loraga.__file__).parent

# The module alone, without the package around it, which takes seconds to import. What happens at each step of
# replacing files is decided by an audit hook, which sees every os.replace before it is done.
PRELUDE = f"""
import json, os, sys, types
package = types.ModuleType("loraga")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["loraga"] = package
from loraga.files import staged_directory

replaced = []
def watch(event, arguments):
    if event == "os.rename":
        before_replacing(os.fspath(arguments[1]))
        replaced.append(os.fspath(arguments[1]))
sys.addaudithook(watch)
target = sys.argv[1]

def write_new_files(staging):
    (staging / "adapter_model.safetensors").write_text("new")
    (staging / "adapter_config.json").write_text("new")
    (staging / "sub").mkdir()
    (staging / "sub" / "model.safetensors").write_text("new")
"""


def run(script, target, returncode=0):
    program = PRELUDE + script
    done = subprocess.run([sys.executable, "-c", program, str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == returncode, done.stderr
    return done.stdout


@contextmanager
def files_cannot_grow_beyond(size):
    """A real error of the operating system in the middle of a write, as from a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def old(tmp_path):
    """A complete directory from before."""
    directory = tmp_path / "adapter"
    (directory / "sub").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json", "sub/model.safetensors", "mine.txt"):
        (directory / name).write_text("old")
    return directory


def forbid_the_exchange(directory):
    """A subdirectory with nothing new in it, where somebody may be writing: files are replaced one by one then."""
    (directory / "runs").mkdir()


def leftovers(tmp_path):
    return [path.name for path in tmp_path.iterdir() if ".saving-" in path.name]


# ---- writing


def test_a_directory_that_did_not_exist_appears_complete(tmp_path):
    target = tmp_path / "some" / "where" / "adapter"
    with staged_directory(target) as staging:
        assert staging.parent == target.parent  # on the same file system, so that moving is one step
        assert not list(staging.iterdir())
        (staging / "a.json").write_text("1")
        assert not target.exists()
    assert content(target) == {"a.json": b"1"}
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert [path.name for path in target.parent.iterdir()] == ["adapter"]


def test_an_empty_directory_is_filled(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    with staged_directory(str(target)) as staging:
        (staging / "a.json").write_text("1")
    assert content(target) == {"a.json": b"1"}


def test_files_are_replaced_and_other_files_stay(old, tmp_path):
    with staged_directory(old) as staging:
        (staging / "adapter_config.json").write_text("new")
        (staging / "sub" / "deep").mkdir(parents=True)
        (staging / "sub" / "deep" / "b.json").write_text("new")
    assert content(old) == {
        "adapter_model.safetensors": b"old",
        "adapter_config.json": b"new",
        "sub/model.safetensors": b"old",
        "sub/deep/b.json": b"new",
        "mine.txt": b"old",
    }
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("written", ["weights alone", "weights and companion", "another file"])
def test_a_companion_of_a_replaced_file_goes_with_it_unless_it_was_written_anew(old, written):
    (old / "loraga.json").write_text("old")
    (old / "sub" / "loraga.json").write_text("old")  # of another file
    with staged_directory(old, {"adapter_model.safetensors": ("loraga.json", "absent.json")}) as staging:
        if written == "another file":
            (staging / "adapter_config.json").write_text("new")
        else:
            (staging / "adapter_model.safetensors").write_text("new")
        if written == "weights and companion":
            (staging / "loraga.json").write_text("new")
    expected = {"weights alone": None, "weights and companion": b"new", "another file": b"old"}[written]
    assert content(old).get("loraga.json") == expected
    assert content(old)["sub/loraga.json"] == content(old)["mine.txt"] == b"old"


def test_a_target_given_relative_to_the_working_directory(old, monkeypatch):
    monkeypatch.chdir(old)
    for target in (".", "new"):
        with staged_directory(target) as staging:
            (staging / "adapter_config.json").write_text("new")
    assert content(old)["adapter_config.json"] == content(old)["new/adapter_config.json"] == b"new"
    assert not leftovers(old)


@pytest.mark.parametrize("exists", ["full", "empty", "not at all"])
def test_a_link_stays_a_link_and_the_directory_that_it_names_is_written(old, tmp_path, exists):
    target = tmp_path / "elsewhere" / "adapter"
    target.parent.mkdir()
    if exists == "full":
        old.rename(target)
    elif exists == "empty":
        target.mkdir()
    link = tmp_path / "link"
    link.symlink_to(target)
    with staged_directory(link) as staging:
        assert staging.parent == target.parent  # where moving is one step, whatever file system the link is on
        (staging / "adapter_config.json").write_text("new")
    assert link.is_symlink()
    assert content(target)["adapter_config.json"] == b"new"
    assert ("mine.txt" in content(target)) == (exists == "full")
    assert not leftovers(tmp_path)
    assert not leftovers(target.parent)


@pytest.mark.parametrize("target", [".", "absolute"])
def test_the_empty_working_directory_is_filled_and_stays_the_same_directory(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    with staged_directory(tmp_path if target == "absolute" else target) as staging:
        (staging / "a.json").write_text("1")
    assert Path("a.json").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def in_a_closed_directory():
    """An empty directory whose parent may not be written, also if the tests run as root."""
    parent = Path(tempfile.mkdtemp())  # root's tmp_path may not be entered by others
    target, user = parent / "adapter", os.geteuid()
    target.mkdir()
    os.chown(target, user or 65534, -1)
    parent.chmod(0o555)
    try:
        os.seteuid(user or 65534)
        yield target
    finally:
        os.seteuid(user)
        parent.chmod(0o755)
        shutil.rmtree(parent)


def test_a_target_whose_parent_may_not_be_written_is_written_file_by_file(in_a_closed_directory):
    target = in_a_closed_directory
    killed = target / f".{target.name}.saving-x"
    for text in ("first", "second"):
        killed.mkdir()  # what an earlier process left
        with staged_directory(target) as staging:
            assert not killed.exists()
            assert staging.parent == target
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                (staging / name).write_text(text)
        assert content(target) == dict.fromkeys(["adapter_model.safetensors", "adapter_config.json"], text.encode())
        assert [path for path in target.iterdir() if path.is_dir()] == []
    with pytest.raises(SaveError, match=r"fresh could not be written"), staged_directory(target.parent / "fresh"):
        raise AssertionError("not reached")


def test_a_mount_point_is_written(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', target]
    try:
        subprocess.run([*mounted, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"file systems cannot be mounted here: {error}")
    script = """
before_replacing = lambda path: None
for _ in range(2):
    with staged_directory(target) as staging:
        write_new_files(staging)
    print(*sorted(name for _, _, names in os.walk(target) for name in names))
"""
    done = subprocess.run(
        [*mounted, sys.executable, "-c", PRELUDE + script, target], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["adapter_config.json adapter_model.safetensors model.safetensors"] * 2
    assert not leftovers(tmp_path)


# ---- a killed process


@pytest.mark.parametrize("exists", [True, False])
def test_a_process_killed_while_it_writes_leaves_the_old_directory(old, tmp_path, exists):
    target = old if exists else tmp_path / "fresh"
    before = content(old)
    run(
        """
before_replacing = lambda path: None
with staged_directory(target) as staging:
    write_new_files(staging)
    os._exit(9)
""",
        target,
        returncode=9,
    )
    assert content(old) == before
    assert target.exists() == exists
    assert leftovers(tmp_path)  # it could not tidy up; the next one does
    with staged_directory(target) as staging:
        (staging / "adapter_config.json").write_text("next")
    assert not leftovers(tmp_path)
    assert content(target)["adapter_config.json"] == b"next"


def test_a_process_killed_before_it_publishes_a_fresh_directory_leaves_none(tmp_path):
    run(
        """
before_replacing = lambda path: os._exit(9)
with staged_directory(target) as staging:
    write_new_files(staging)
""",
        tmp_path / "fresh",
        returncode=9,
    )
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize("step", range(3))
def test_a_process_killed_while_it_replaces_leaves_whole_files_and_no_description_newer_than_the_weights(old, step):
    forbid_the_exchange(old)
    run(
        f"""
before_replacing = lambda path: os._exit(9) if len(replaced) == {step} else None
with staged_directory(target) as staging:
    write_new_files(staging)
""",
        old,
        returncode=9,
    )
    after = content(old)
    assert after.pop("mine.txt") == b"old"
    assert sorted(after.values()) == sorted([b"new"] * step + [b"old"] * (3 - step))
    assert after["adapter_config.json"] == b"old"


def test_weights_are_replaced_first_and_each_file_in_one_step(old):
    forbid_the_exchange(old)
    replaced = run(
        """
before_replacing = lambda path: None
with staged_directory(target) as staging:
    write_new_files(staging)
print(json.dumps(replaced))
""",
        old,
    )
    names = ["adapter_model.safetensors", "sub/model.safetensors", "adapter_config.json"]
    assert json.loads(replaced) == [str(old / name) for name in names]


def test_a_directory_is_exchanged_in_one_step_with_its_other_files_in_it(old):
    (old / "link").symlink_to("mine.txt")
    old.chmod(0o750)
    mine, before = (old / "mine.txt").stat().st_ino, old.stat().st_ino
    replaced = run(
        """
before_replacing = lambda path: None
with staged_directory(target, {"adapter_config.json": ("sub.json",)}) as staging:
    write_new_files(staging)
print(json.dumps(replaced))
""",
        old,
    )
    assert json.loads(replaced) == []  # no file was moved by itself
    assert old.stat().st_ino != before
    assert stat.S_IMODE(old.stat().st_mode) == 0o750
    assert (old / "mine.txt").stat().st_ino == mine  # who has it open goes on writing into the same file
    assert (old / "link").readlink() == Path("mine.txt")
    assert set(content(old).values()) == {b"old", b"new"}
    assert content(old)["mine.txt"] == content(old)["link"] == b"old"
    assert not leftovers(old.parent)


@pytest.mark.parametrize("event", ["os.link", "os.chmod"])
def test_a_process_killed_before_the_exchange_leaves_the_old_directory(old, event):
    before = content(old)
    run(
        f"""
before_replacing = lambda path: None
def die(event, arguments):
    if event == {event!r} and os.path.exists(os.path.join(target, "mine.txt")) and "new" in written:
        os._exit(9)
written = []
sys.addaudithook(die)
with staged_directory(target) as staging:
    write_new_files(staging)
    written.append("new")
""",
        old,
        returncode=9,
    )
    assert content(old) == before
    with staged_directory(old) as staging:
        (staging / "adapter_config.json").write_text("next")
    assert not leftovers(old.parent)


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt("no"), ZeroDivisionError("no")])
@pytest.mark.parametrize("step", range(3))
def test_an_error_while_files_are_replaced_one_by_one_undoes_it(old, monkeypatch, error, step):
    forbid_the_exchange(old)
    (old / "loraga.json").write_text("old")
    before, replace, calls = content(old), Path.replace, []

    def failing(path, destination):
        calls.append(destination)
        if len(calls) == step + 1:
            raise error
        return replace(path, destination)

    monkeypatch.setattr(Path, "replace", failing)
    expected = SaveError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="no"), staged_directory(old, {"a.json": ("loraga.json",)}) as staging:
        for name in ("adapter_model.safetensors", "adapter_config.json", "a.json"):  # the last one is not there yet
            (staging / name).write_text("new")
    assert content(old) == before
    assert not leftovers(old.parent)


# ---- two processes at once

PAUSED = """
import time
before_replacing = lambda path: None
def pause(event, arguments):
    if event == sys.argv[2] and os.path.exists(go):
        print("pausing", flush=True)
        time.sleep(0.5)
        os.path.exists(go) and os.remove(go)
go = target + ".go"
sys.addaudithook(pause)
with staged_directory(target, {"adapter_config.json": ("loraga.json",)}) as staging:
    for name in ("adapter_model.safetensors", "adapter_config.json", "loraga.json"):
        (staging / name).write_text("one")
"""


@pytest.mark.parametrize("event", ["os.rename", "os.link"])
def test_of_two_processes_that_write_at_once_the_directory_holds_one_ones_whole_content(old, event):
    if event == "os.rename":
        forbid_the_exchange(old)
    go = old.with_name("adapter.go")
    go.touch()
    first = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + PAUSED, str(old), event], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert first.stdout.readline() == b"pausing\n"  # half of it is done
    with staged_directory(old, {"adapter_config.json": ("loraga.json",)}) as staging:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (staging / name).write_text("two")
    _, said = first.communicate()
    assert first.returncode == 0, said
    after = content(old)
    assert after.pop("mine.txt") == after.pop("sub/model.safetensors") == b"old"
    assert after == {"adapter_model.safetensors": b"two", "adapter_config.json": b"two"}  # it waited, and is the last
    assert not leftovers(old.parent)


def test_what_a_living_process_is_writing_is_not_taken_for_a_leftover(old):
    writing = """
before_replacing = lambda path: None
with staged_directory(target) as staging:
    print("writing", flush=True)
    sys.stdin.readline()
    write_new_files(staging)
"""
    other = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + writing, str(old)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "writing\n"
    with staged_directory(old) as staging:
        (staging / "adapter_config.json").write_text("mine")
    assert len(leftovers(old.parent)) == 1
    assert content(old)["adapter_config.json"] == b"mine"
    other.communicate("go on\n")
    assert other.returncode == 0
    assert content(old)["adapter_config.json"] == b"new"
    assert not leftovers(old.parent)


@pytest.mark.parametrize(
    ("owner", "age", "is_left"),
    [
        ("{host}-{dead}-x", 0, False),
        ("{host}-{living}-x", 0, True),
        ("{host}-{living}-x", 90_000, False),
        ("elsewhere-{dead}-x", 0, True),
        ("elsewhere-{dead}-x", 90_000, False),
    ],
)
def test_a_leftover_is_what_a_dead_process_or_nobody_for_a_day_has_touched(tmp_path, owner, age, is_left):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = owner.format(host=socket.gethostname(), dead=dead.pid, living=os.getppid())
    for kind, there in (("directory", tmp_path / f".a.saving-{name}"), ("file", tmp_path / f".b.saving-{name}")):
        there.mkdir() if kind == "directory" else there.touch()
        os.utime(there, (time.time() - age,) * 2)
    with staged_directory(tmp_path / "a") as staging:
        (staging / "a.json").write_text("1")
    with staged_file(tmp_path / "b") as staged:
        staged.write_text("1")
    assert bool(leftovers(tmp_path)) == is_left
    assert len(leftovers(tmp_path)) in (0, 2)


def test_what_another_target_left_is_not_touched(tmp_path):
    for name in (".adapter2.saving-x", ".adapter.saving-x"):
        (tmp_path / name).mkdir()
    with staged_directory(tmp_path / "adapter") as staging:
        (staging / "a.json").write_text("1")
    assert leftovers(tmp_path) == [".adapter2.saving-x"]


def test_leftovers_of_a_target_with_special_characters_are_removed_and_no_others(tmp_path):
    for name in (".run[1].saving-x", ".run1.saving-x"):
        (tmp_path / name).mkdir()
    with staged_directory(tmp_path / "run[1]") as staging:
        (staging / "a.json").write_text("1")
    assert leftovers(tmp_path) == [".run1.saving-x"]


# ---- a full disk


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("kind", ["text", "safetensors"])
def test_a_full_disk_leaves_the_directory_as_it_was(old, tmp_path, exists, kind):
    target = old if exists else tmp_path / "fresh"
    before = content(old)
    matrix = planted(64, 64).matrix  # 32 KiB
    with (
        pytest.raises(SaveError, match=rf"{target.name} could not be written .*what was there before is as it was"),
        files_cannot_grow_beyond(8192),
        staged_directory(target) as staging,
    ):
        (staging / "adapter_config.json").write_text("new")
        if kind == "text":
            (staging / "report.json").write_text(json.dumps(matrix.tolist()))
        else:
            save_file({"a": matrix.clone()}, staging / "adapter_model.safetensors")
    assert content(old) == before
    assert target.exists() == exists
    assert not leftovers(tmp_path)


def test_an_error_of_another_kind_passes_through_and_leaves_nothing(old, tmp_path):
    before = content(old)
    for error in (KeyboardInterrupt("stop"), ZeroDivisionError("stop")):
        with pytest.raises(type(error), match="stop"), staged_directory(old) as staging:
            (staging / "adapter_config.json").write_text("new")
            raise error
    assert content(old) == before
    assert not leftovers(tmp_path)


# ---- targets that cannot be


def test_a_target_that_is_a_file_is_refused(tmp_path):
    target = tmp_path / "adapter"
    target.write_text("mine")
    with pytest.raises(SaveError, match=r"adapter is a file, not a directory"), staged_directory(target):
        raise AssertionError("not reached")
    assert content(tmp_path) == {"adapter": b"mine"}


def test_a_target_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(SaveError, match=r"file/adapter could not be written"),
        staged_directory(tmp_path / "file" / "adapter"),
    ):
        raise AssertionError("not reached")
    assert content(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("name", ["adapter_config.json", "sub"])
def test_what_cannot_be_replaced_leaves_everything_as_it_was(old, tmp_path, name):
    """A directory where a file is to be, and a file where a directory is to be."""
    (old / "sub" / "model.safetensors").unlink()
    (old / "sub").rmdir()
    (old / "adapter_config.json").unlink()
    (old / name).mkdir() if name == "adapter_config.json" else (old / name).write_text("mine")
    before = content(old)
    with pytest.raises(SaveError, match=r"adapter.* what was there before is as it was"), staged_directory(old) as new:
        save_file({"a": torch.arange(3)}, new / "adapter_model.safetensors")
        (new / "adapter_config.json").write_text("new")
        (new / "sub").mkdir()
        (new / "sub" / "b.json").write_text("new")
    assert content(old) == before
    assert not leftovers(tmp_path)
