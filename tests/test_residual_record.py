import json
import subprocess
import sys

import pytest

from loraga.errors import SaveError
from loraga.residual_record import RECORD, ResidualLayer, ResidualRecord, read_record, residual_base_of

LAYERS = {"a.b": ResidualLayer(2, 0.5, (0.25, -1e-9), 1e-8), "c": ResidualLayer(1, 3.0, (0.0,), 0.0)}


@pytest.fixture
def base(tmp_path):
    """A residual base of some/model, with its start."""
    folder = tmp_path / "base"
    (folder / "adapter").mkdir(parents=True)
    ResidualRecord("some/model", LAYERS, "ab" * 32).write(folder)
    return folder


def test_a_record_is_read_as_it_was_written(base):
    assert read_record(base) == ResidualRecord("some/model", LAYERS, "ab" * 32)


def test_another_directory_has_no_record(tmp_path):
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}'])
def test_a_damaged_record_is_refused(base, text):
    (base / RECORD).write_text(text)

    with pytest.raises(SaveError, match=r"loraga_residual\.json is damaged .*; copy the residual base again"):
        read_record(base)


@pytest.mark.parametrize("change", [{"layers": {"a": {"rank": 2}}}, {"layers": None}, {"layers": {"a": 1}}])
def test_a_record_whose_layers_are_incomplete_is_refused(base, change):
    (base / RECORD).write_text(json.dumps(json.loads((base / RECORD).read_text()) | change))

    with pytest.raises(SaveError, match="is damaged"):
        read_record(base)


def test_a_record_of_another_format_is_refused(base):
    (base / RECORD).write_text(json.dumps(json.loads((base / RECORD).read_text()) | {"format": 2}))

    with pytest.raises(SaveError, match="has format 2; this version of loraga reads format 1"):
        read_record(base)


def test_the_base_that_an_adapter_names_is_its_base(base, tmp_path):
    found = residual_base_of(tmp_path / "trained", {"base_model_name_or_path": str(base)})

    assert found == (base, read_record(base))


def test_the_start_beside_a_residual_base_that_was_moved_is_for_it(base):
    assert residual_base_of(base / "adapter", {"base_model_name_or_path": "/was/here"})[0] == base.resolve()
    assert residual_base_of(base / "trained", {"base_model_name_or_path": "/was/here"}) == (None, None)


def test_a_trained_adapter_is_for_the_residual_base_that_it_is_given_when_that_has_moved(base, tmp_path):
    config = {"base_model_name_or_path": "/was/here"}

    assert residual_base_of(tmp_path / "trained", config, str(base))[0] == base
    assert residual_base_of(tmp_path / "trained", config, str(tmp_path)) == (None, None)
    assert residual_base_of(tmp_path / "trained", {}) == (None, None)


@pytest.mark.parametrize("place", ["adapter", "elsewhere"])
def test_an_adapter_that_names_the_original_is_for_no_residual_base_wherever_it_lies(base, place):
    assert residual_base_of(base / place, {"base_model_name_or_path": "some/model"}, str(base)) == (None, None)


def test_looking_for_a_record_imports_nothing_heavy():
    code = "import sys, loraga.residual_record; print([n for n in ('torch', 'peft', 'numpy') if n in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
