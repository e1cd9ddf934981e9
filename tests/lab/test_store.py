import json
import math

import pytest

from loraga.lab.errors import LabError, SettingsError
from loraga.lab.store import Store

SETTINGS = {"steps": 60, "rates": {"lora": 0.002}, "task": ("a", "b")}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "out" / "results.json"


def refuse():
    raise AssertionError("computed again")


def test_a_result_is_computed_once_also_by_the_next_process(file):
    assert Store(file, SETTINGS).once("base", lambda: {"losses": (1.0, 2.0)}) == {"losses": [1.0, 2.0]}

    again = Store(file, SETTINGS)
    assert again.once("base", refuse) == {"losses": [1.0, 2.0]}
    assert dict(again.results) == {"base": {"losses": [1.0, 2.0]}}


def test_a_failed_computation_leaves_the_earlier_results(file):
    store = Store(file, SETTINGS)
    store.once("first", lambda: 1)
    with pytest.raises(AssertionError, match="computed again"):
        store.once("second", refuse)

    assert dict(Store(file, SETTINGS).results) == {"first": 1}


def test_results_of_other_settings_are_refused_and_stay(file):
    Store(file, SETTINGS).once("base", lambda: 1)
    before = file.read_bytes()

    with pytest.raises(SettingsError, match="steps 60 there, 30 here"):
        Store(file, SETTINGS | {"steps": 30})

    assert file.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": {}}', "\udcff".encode("utf-8", "surrogateescape")])
def test_a_file_that_is_no_results_file_is_refused_and_stays(file, content):
    file.parent.mkdir()
    data = content if isinstance(content, bytes) else content.encode()
    file.write_bytes(data)

    with pytest.raises(SettingsError, match="holds no results"):
        Store(file, SETTINGS)

    assert file.read_bytes() == data


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")

    with pytest.raises(SettingsError, match="is not a folder"):
        Store(tmp_path / "out" / "results.json", SETTINGS)


def test_a_write_that_fails_keeps_the_last_whole_file(file, monkeypatch):
    store = Store(file, SETTINGS)
    store.once("first", lambda: 1)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loraga.lab.store.os.fsync", full_disk)
    with pytest.raises(LabError, match="No space left on device"):
        store.once("second", lambda: 2)

    assert json.loads(file.read_text())["results"] == {"first": 1}
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]


def test_a_loss_that_is_not_finite_survives(file):
    Store(file, SETTINGS).once("loss", lambda: [math.nan, math.inf])

    nan, infinite = Store(file, SETTINGS).results["loss"]
    assert math.isnan(nan)
    assert infinite == math.inf


def test_a_summary_stands_beside_the_results(file):
    store = Store(file, SETTINGS)
    store.once("base", lambda: 1)
    store.write_summary({"table": [1, 2]})

    content = json.loads(file.read_text())
    assert content["table"] == [1, 2]
    assert content["results"] == {"base": 1}
