import json

import pytest

from loraga.lab.errors import SettingsError
from loraga.lab.inspection.files import FILES, JSON, PAGE, content_of, require_free, subject_of, write
from loraga.lab.inspection.inspection import inspect_recipe
from tests.lab.conftest import Told

from .test_inspection import quiet

KEYS = {"gradient_batches": 2, "per_device_train_batch_size": 4}


def inspected(asked, estimator="exact"):
    return inspect_recipe(asked, None, estimator, quiet(), Told())


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """A recipe, what its inspection found, the folder that was written, and what inspect.json was to hold."""
    asked, folder = recipe(rank=3, **KEYS), tmp_path_factory.mktemp("done") / "out"
    found = inspected(asked)
    return asked, found, folder, write(found, asked, folder)


def test_everything_is_in_the_folder_and_the_numbers_are_those_found(done):
    asked, found, folder, content = done

    assert {each.name for each in folder.iterdir()} == set(FILES)
    read = json.loads((folder / JSON).read_text())
    assert read == content
    assert read["recipe"]["data"] == asked.data
    assert read["versions"]["loraga"]
    assert read["loss_terms"] == found.loss_terms
    assert list(read["layers"]) == [layer.name for layer in found.layers]
    assert [int(rank) for rank in read["median"]["coverage"]] == [1, 2, 3, 4, 8, 16, 32, 64, 128]
    for layer in found.layers:
        row = read["layers"][layer.name]
        values = row["singular_values"]
        assert row["shape"] == list(layer.spectrum.shape)
        assert values == pytest.approx(layer.spectrum.values, rel=1e-5)
        assert row["sum_of_squares"] == pytest.approx(sum(value**2 for value in layer.spectrum.values), rel=1e-5)
        assert row["coverage"]["3"] == pytest.approx(sum(v**2 for v in values[:6]) / row["norm"] ** 2, rel=1e-4)
        assert row["coverage"]["128"] == 1
        assert row["rank_for_90_percent"] == layer.spectrum.rank_for(0.9)
    lowest = min(read["layers"], key=lambda name: read["layers"][name]["coverage"]["3"])
    assert read["lowest"]["layer"] == lowest
    assert read["lowest"]["coverage"]["3"] == read["layers"][lowest]["coverage"]["3"]
    assert (folder / PAGE).read_text().startswith(f"# The gradient of {subject_of(asked)}")


def test_what_streaming_does_not_know_is_null_and_said(recipe):
    asked = recipe(rank=2, **KEYS)

    content = content_of(inspected(asked, "streaming"), asked)

    assert "the tail is known only in norm" in content["singular_values"]
    assert content["rank_for_90_percent"]["largest_known"] == 4
    for row in content["layers"].values():
        assert (row["values_known"], len(row["singular_values"])) == (8, 8)
        assert row["coverage"]["4"] > row["coverage"]["2"] > 0
        assert row["coverage"]["8"] is None
    assert content["median"]["coverage"]["8"] is content["lowest"]["coverage"]["8"] is None


def test_the_same_recipe_gives_the_same_numbers_and_may_be_written_again(done):
    asked, _, folder, content = done

    require_free(folder, asked)

    assert content_of(inspected(asked), asked) == content


def test_a_folder_of_something_else_is_refused(recipe, tmp_path):
    require_free(tmp_path / "new", recipe())
    require_free(tmp_path, recipe())  # it is empty
    (tmp_path / "notes.txt").touch()

    with pytest.raises(SettingsError, match=r"holds something else \(notes\.txt\); name another folder with --output"):
        require_free(tmp_path, recipe())
    with pytest.raises(SettingsError, match="is a file, not a folder"):
        require_free(tmp_path / "notes.txt", recipe())


def test_the_inspection_of_another_recipe_is_not_overwritten(done, recipe):
    _, _, folder, _ = done

    with pytest.raises(SettingsError, match=r"inspection of another recipe \(rank is 3 there, 2 here\); remove it, or"):
        require_free(folder, recipe(rank=2, **KEYS))


def test_the_subject_names_model_and_data_without_their_folders(recipe):
    assert subject_of(recipe(model="some/model", data="a/rows.jsonl")) == "model on rows.jsonl"
