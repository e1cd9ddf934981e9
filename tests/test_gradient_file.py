"""Tests of the gradients file: what is read is what was written, bit for bit, or an error."""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import loraga
from loraga import GradientFileError, SaveError, describe_gradients, load_gradients, save_gradients
from loraga.gradient import LowRankGradient, factor_matrix
from loraga.gradient_file import FORMAT
from tests.planted import planted


def some_gradients(columns=3, seed=0):
    return {
        f"layers.{i}.fc": factor_matrix(planted(*shape, seed=seed + i).matrix, 10.5 + i).truncate(columns)
        for i, shape in enumerate([(5, 7), (6, 4)])
    }


def same(one, two):
    return list(one) == list(two) and all(
        torch.equal(one[name].U, two[name].U)
        and torch.equal(one[name].S, two[name].S)
        and torch.equal(one[name].Vh, two[name].Vh)
        and (one[name].tail, one[name].loss_terms) == (two[name].tail, two[name].loss_terms)
        for name in one
    )


@pytest.fixture
def path(tmp_path):
    """A file that was written."""
    path = tmp_path / "gradients.safetensors"
    save_gradients(some_gradients(), path, model="tiny", seed=7)
    return path


def parts(path):
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 (not a mapping)


# ---- round trips


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 20), st.floats(0.5, 1e9)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 1000),
)
def test_a_round_trip_is_exact_bit_for_bit(tmp_path, shapes, seed):
    gradients = {
        name: factor_matrix(planted(d_out, d_in, seed=seed).matrix, terms).truncate(columns)
        for name, (d_out, d_in, columns, terms) in shapes.items()
    }
    save_gradients(gradients, tmp_path / "g.safetensors")
    loaded = load_gradients(tmp_path / "g.safetensors")
    assert same({name: loaded[name] for name in gradients}, gradients)
    assert len(loaded) == len(gradients)
    assert all(isinstance(gradient, LowRankGradient) for gradient in loaded.values())


def test_what_was_loaded_can_be_saved_again_as_the_same_bytes(path, tmp_path):
    again = tmp_path / "again.safetensors"
    save_gradients(load_gradients(path), again, model="tiny", seed=7)
    assert same(load_gradients(again), load_gradients(path))
    assert sorted(again.read_bytes()) == sorted(path.read_bytes())  # the order of metadata is not fixed


def test_a_gradient_of_no_columns_and_no_gradients_at_all_survive(tmp_path):
    none = {"fc": factor_matrix(planted(5, 7).matrix, 1).truncate(0)}
    for gradients in (none, {}):
        save_gradients(gradients, tmp_path / "g.safetensors")
        assert same(load_gradients(tmp_path / "g.safetensors"), gradients)


def test_views_and_factors_that_need_a_gradient_can_be_saved(tmp_path):
    gradient = some_gradients()["layers.0.fc"]
    turned = LowRankGradient(
        U=gradient.Vh.T.requires_grad_(), S=gradient.S, Vh=gradient.U.T, tail=gradient.tail, loss_terms=3.0
    )
    save_gradients({"fc": turned}, tmp_path / "g.safetensors")
    assert same(load_gradients(tmp_path / "g.safetensors"), {"fc": turned})


def test_a_description_says_what_it_was_made_from(path):
    facts = describe_gradients(path)
    assert (facts["model"], facts["seed"]) == ("tiny", 7)
    assert {name: tuple(layer["shape"]) for name, layer in facts["layers"].items()} == {
        "layers.0.fc": (5, 7),
        "layers.1.fc": (6, 4),
    }
    assert facts["layers"]["layers.1.fc"]["loss_terms"] == 11.5
    assert facts["versions"]["loraga"] == loraga.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert set(facts["versions"]) == {"loraga", "torch", "transformers", "peft"}


def test_loading_puts_the_factors_on_the_device_asked_for(path):
    assert {g.U.device.type for g in load_gradients(path, device="meta").values()} == {"meta"}


# ---- damage


def test_every_flipped_bit_is_found(path):
    """Of each byte one bit, another in each: length, header, metadata, checksum and tensors."""
    whole, gradients = path.read_bytes(), load_gradients(path)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(GradientFileError, match=r"gradients\.safetensors is (damaged|not a gradients file)"):
            load_gradients(path)
    path.write_bytes(whole)
    assert same(load_gradients(path), gradients)


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_one_tensor_and_of_the_checksum_is_found(path, bit):
    whole = path.read_bytes()
    _, metadata = parts(path)
    checksum = whole.index(metadata["sha256"].encode())
    for position in (*range(len(whole) - 12, len(whole)), *range(checksum, checksum + 64, 7)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(GradientFileError, match="is damaged"):
            load_gradients(path)


def test_every_truncation_is_found(path):
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 13), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(GradientFileError, match="is damaged or no safetensors file"):
            load_gradients(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(GradientFileError, match="is damaged or no safetensors file"):
        load_gradients(path)


def test_a_missing_layer_or_factor_is_found(path):
    tensors, metadata = parts(path)
    for missing in tensors:
        save_file({key: tensor for key, tensor in tensors.items() if key != missing}, path, metadata=metadata)
        with pytest.raises(GradientFileError, match=r"its checksum does not fit its content; estimate it again"):
            load_gradients(path)


@pytest.mark.parametrize("change", [lambda t: t.clone().mul_(1 + 1e-6), lambda t: t.T.contiguous(), lambda t: t.half()])
def test_a_changed_tensor_is_found(path, change):
    tensors, metadata = parts(path)
    save_file({**tensors, "layers.0.fc.U": change(tensors["layers.0.fc.U"])}, path, metadata=metadata)
    with pytest.raises(GradientFileError, match="its checksum does not fit its content"):
        load_gradients(path)


@pytest.mark.parametrize("fact", ["tail", "loss_terms"])
def test_a_changed_or_missing_fact_is_found(path, fact):
    tensors, metadata = parts(path)
    for value in (None, 1.0):
        content = json.loads(metadata["content"])
        content["layers"]["layers.0.fc"][fact] = value
        save_file(tensors, path, metadata={**metadata, "content": json.dumps(content, sort_keys=True)})
        with pytest.raises(GradientFileError, match="its checksum does not fit its content"):
            load_gradients(path)


@pytest.mark.parametrize("missing", ["sha256", "content", "format"])
def test_missing_metadata_is_found(path, missing):
    tensors, metadata = parts(path)
    save_file(tensors, path, metadata={key: value for key, value in metadata.items() if key != missing})
    message = "not a gradients file of this version" if missing == "format" else "its checksum does not fit"
    with pytest.raises(GradientFileError, match=message):
        load_gradients(path)


# ---- other files


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": FORMAT + "0"}])
def test_another_safetensors_file_is_refused(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file({"fc.weight": planted(5, 7).matrix.bfloat16()}, path, metadata=metadata)
    for read in (load_gradients, describe_gradients):
        with pytest.raises(GradientFileError, match=r"model\.safetensors is not a gradients file of this version"):
            read(path)


def test_a_file_that_does_not_exist_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(GradientFileError, match=rf"{path.name} does not exist"):
            load_gradients(path)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "sprung")


def test_a_pickle_is_never_opened(tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "gradients.pt"
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.read_text() == "sprung"
    sprung.unlink()
    for save in (lambda: torch.save(Trap(sprung), path), lambda: path.write_bytes(pickle.dumps(Trap(sprung)))):
        save()
        with pytest.raises(GradientFileError, match="is damaged or no safetensors file"):
            load_gradients(path)
    assert not sprung.exists()


# ---- writing


@contextmanager
def files_cannot_grow_beyond(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_full_disk_leaves_the_file_as_it_was(path, limit):
    before = path.read_bytes()
    with (
        pytest.raises(SaveError, match=r"gradients\.safetensors could not be written .*what was there before"),
        files_cannot_grow_beyond(limit),
    ):
        save_gradients(some_gradients(seed=5), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_process_killed_before_it_replaces_leaves_the_file_as_it_was(path):
    before, gradients = path.read_bytes(), some_gradients(seed=5)

    def die(event, arguments):
        if event == "os.rename" and Path(arguments[1]) == path:
            os._exit(9)

    with warnings.catch_warnings():
        # a fork of a process with threads; the child writes a file and computes nothing
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(die)
            save_gradients(gradients, path)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_bytes() == before
    assert same(load_gradients(path), some_gradients())


def test_a_file_is_made_with_its_directory_and_replaced_by_the_next(tmp_path):
    path = tmp_path / "some" / "where" / "g.safetensors"
    for seed in (1, 2):
        save_gradients(some_gradients(seed=seed), path)
        assert same(load_gradients(path), some_gradients(seed=seed))
    assert [p.name for p in path.parent.iterdir()] == ["g.safetensors"]


def test_a_target_that_is_a_directory_is_refused(tmp_path):
    (tmp_path / "g.safetensors").mkdir()
    (tmp_path / "g.safetensors" / "mine").write_text("mine")
    with pytest.raises(SaveError, match=r"g\.safetensors could not be written"):
        save_gradients(some_gradients(), tmp_path / "g.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]


@pytest.mark.parametrize("tail", [0.0, 1e-30, math.pi])
def test_facts_keep_every_digit(tmp_path, tail):
    gradient = LowRankGradient(torch.rand(3, 2), torch.rand(2), torch.rand(2, 4), tail=tail, loss_terms=1 / 3)
    save_gradients({"fc": gradient}, tmp_path / "g.safetensors")
    [loaded] = load_gradients(tmp_path / "g.safetensors").values()
    assert (loaded.tail, loaded.loss_terms) == (tail, 1 / 3)
