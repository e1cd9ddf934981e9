import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loraga.lab.errors import LabError, SettingsError
from loraga.lab.recipe import Recipe
from loraga.lab.recipe_check import load_recipe
from loraga.lab.run_folder import (
    LOG,
    METRICS,
    RECIPE,
    START_FACTS,
    VERSIONS,
    RunFolder,
    open_folder,
    read_json,
    read_lines,
    require_own,
    write_json,
    write_whole,
)

NOBODY = 65534


@pytest.fixture
def recipe(tmp_path):
    return Recipe(model="m", data="d", prompt="q", target="a", output_dir=str(tmp_path / "runs" / "one"))


@pytest.fixture
def folder(recipe):
    path = Path(recipe.output_dir)
    path.mkdir(parents=True)
    return RunFolder(path)


def begun(recipe):
    with open_folder(recipe) as folder:
        folder.write_json(START_FACTS, {"seconds": 1.0})
    return folder


def test_a_new_folder_is_made_with_its_recipe(recipe):
    with open_folder(recipe) as folder:
        assert load_recipe(folder / RECIPE) == recipe

    assert folder.path == Path(recipe.output_dir)
    assert not folder.has_begun


def test_the_same_recipe_goes_on_in_its_folder(recipe):
    begun(recipe)

    with open_folder(recipe) as folder:
        assert folder.has_begun
        assert folder.read_json(START_FACTS) == {"seconds": 1.0}


def test_a_folder_that_was_moved_still_belongs_to_its_recipe(recipe, tmp_path):
    begun(recipe).path.rename(tmp_path / "moved")

    with open_folder(replace(recipe, output_dir=str(tmp_path / "moved"))) as folder:
        assert folder.has_begun


def test_another_recipe_is_refused_with_what_differs_and_nothing_is_changed(recipe):
    folder = begun(recipe)
    other = replace(recipe, rank=4, trainer={"max_grad_norm": 0.5})

    said = r"the folder of another run \(rank is 8 there, 4 here; max_grad_norm is None there, 0\.5 here\)"
    with pytest.raises(SettingsError, match=said), open_folder(other):
        pass
    assert load_recipe(folder / RECIPE) == recipe


def test_a_folder_where_nothing_has_begun_is_taken_over(recipe):
    with open_folder(recipe) as folder:
        folder.write_json(VERSIONS, {"loraga": "0"})
    other = replace(recipe, rank=4)

    with open_folder(other) as folder:
        assert load_recipe(folder / RECIPE) == other


def test_what_a_killed_first_write_left_is_no_run(recipe, folder):
    for name in (RECIPE, VERSIONS):
        (folder / f".{name}.unfinished").write_text("mod")

    assert not folder.has_begun
    with open_folder(recipe):
        assert load_recipe(folder / RECIPE) == recipe


def test_a_folder_of_something_else_is_refused_and_left_alone(recipe, folder):
    (folder / "thesis.txt").write_text("years of work")

    with pytest.raises(SettingsError, match=r"holds something else and no recipe\.yaml"), open_folder(recipe):
        pass
    assert [each.name for each in folder.path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(recipe, tmp_path):
    (tmp_path / "runs").mkdir()
    Path(recipe.output_dir).write_text("")

    with pytest.raises(SettingsError, match="is a file, not a folder"), open_folder(recipe):
        pass


def test_a_file_above_the_folder_is_an_error_that_names_it(recipe, tmp_path):
    (tmp_path / "runs").write_text("")

    with pytest.raises(LabError, match=r"cannot read or write .*runs"), open_folder(recipe):
        pass


def test_a_folder_that_is_not_there_is_anybodys(recipe):
    require_own(RunFolder(Path(recipe.output_dir)), recipe)


HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_which_another_process_works_is_refused_until_it_ends(recipe, folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(SettingsError, match="another process works in"), open_folder(recipe):
            pass
        assert not (folder / RECIPE).exists()
    finally:
        holder.communicate("")

    with open_folder(recipe):
        assert (folder / RECIPE).exists()


def test_a_folder_is_free_again_after_an_error(recipe):
    with pytest.raises(ValueError, match="broken"), open_folder(recipe):
        raise ValueError("broken")

    with open_folder(recipe):
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_read_only_folder_is_an_error_that_names_it_as_another_user(recipe, folder, tmp_path):
    modes = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.parents[:2])}  # closed to others by pytest
    for path, mode in modes.items():
        path.chmod(mode | 0o055)
    folder.path.chmod(0o555)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(LabError, match=r"cannot read or write .*one.*: Permission denied; what is there is kept"):
            open_folder(recipe).__enter__()
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)
    assert list(folder.path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error_that_names_it(recipe, folder):
    folder.path.chmod(0o555)
    try:
        with pytest.raises(LabError, match=r"cannot read or write .*one.*: Permission denied"), open_folder(recipe):
            pass
    finally:
        folder.path.chmod(0o755)


def test_a_run_is_done_when_its_metrics_are_there(folder):
    assert not folder.is_done
    folder.write_json(METRICS, {})
    assert folder.is_done


# log.jsonl


def test_the_log_holds_its_lines_in_order(folder):
    assert (folder.log(), folder.losses()) == ([], [])
    lines = [{"step": 1, "loss": 2.5}, {"step": 1, "eval_loss": 3.0}, {"step": 2, "loss": 1.5}]
    for line in lines:
        folder.add_to_log(line)

    assert folder.log() == lines
    assert folder.losses() == [2.5, 1.5]


def test_the_log_is_cut_after_a_step(folder):
    for step in range(1, 6):
        folder.add_to_log({"step": step, "loss": 1.0 / step})

    folder.cut_log(3)
    assert [line["step"] for line in folder.log()] == [1, 2, 3]
    folder.add_to_log({"step": 4})
    assert [line["step"] for line in folder.log()] == [1, 2, 3, 4]
    folder.cut_log(0)
    assert folder.log() == []


@pytest.mark.parametrize("left", ['{"step": 2, "lo', '{"step": 2, "loss": 1.0}', "{"])
def test_half_a_last_line_is_none_and_is_gone_when_the_log_goes_on(folder, left):
    folder.add_to_log({"step": 1, "loss": 2.0})
    with (folder / LOG).open("a") as file:
        file.write(left)  # the line break never came

    assert folder.log() == [{"step": 1, "loss": 2.0}]
    folder.cut_log(1)
    folder.add_to_log({"step": 2, "loss": 3.0})
    assert folder.losses() == [2.0, 3.0]


def test_half_a_line_in_the_middle_is_no_log(tmp_path):
    (tmp_path / LOG).write_text('{"step": 1\n{"step": 2}\n')

    with pytest.raises(SettingsError, match="holds no JSON lines, so it is none of ours"):
        read_lines(tmp_path / LOG)


# Writing


def test_json_is_written_with_its_folder_and_read_back(tmp_path):
    content = {"a": [1, 2.5, None], "b": {"c": "ü"}}

    write_json(tmp_path / "new" / "x.json", content)

    assert read_json(tmp_path / "new" / "x.json") == content
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["x.json"]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    write_whole(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # Python ignores the signal, so a longer file is an OSError
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(path, "new" * 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["x.txt"]


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "x.txt"
    write_whole(path, "a long old text\n")
    write_whole(path, "new ü")

    assert path.read_text(encoding="utf-8") == "new ü"
    assert [each.name for each in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("damage", [b"", b'{"steps": 4', b'{"steps"\xff: 4}'])
def test_a_damaged_file_of_a_run_is_named_with_what_to_do(tmp_path, damage):
    (tmp_path / "metrics.json").write_bytes(damage)
    with pytest.raises(LabError, match=r"metrics\.json is damaged .* remove it, and the same command makes it anew"):
        read_json(tmp_path / "metrics.json")
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n{"step"\xff: 2}\n')
    with pytest.raises(SettingsError, match=r"log\.jsonl holds no JSON lines"):
        read_lines(tmp_path / "log.jsonl")
