"""Tests of what counts as a complete checkpoint, on a directory with a real run's files and names."""

from __future__ import annotations

import json
import re
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from loraga.checkpoint import newest_complete_checkpoint, why_incomplete
from loraga.checksum import tensor_checksum
from loraga.layout import CONFIG_KEYS, SplitRecipe

ZIP_DIRECTORY, ZIP_METHOD = b"PK\x01\x02", 10  # how each entry of a zip file's directory begins, and where this stands
ADAPTER = {"base_model.model.layer.lora_A.weight": torch.arange(6.0).reshape(2, 3)}


def write_adapter(folder, recipe=True):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(ADAPTER, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    if recipe:
        keys = dict.fromkeys(CONFIG_KEYS)
        recipe = SplitRecipe(config=keys, ranks={}, folded=False, version="0", sha256=tensor_checksum(ADAPTER))
        (folder / "loraga.json").write_text(json.dumps(recipe.to_dict()))


def write_checkpoint(output, step, resumable=True):
    path = output / f"checkpoint-{step}"
    write_adapter(path)
    if resumable:
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"step": step}, path / name)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def flip_in_a_tensor_of_torchs(path):
    torch.save({"moment": torch.full((64,), 7.0)}, path)
    flip(path, path.read_bytes().index(torch.full((64,), 7.0).numpy().tobytes()) + 100)


def call_a_tensor_of_torchs_compressed(path):
    torch.save({"moment": torch.full((64,), 7.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.rindex(ZIP_DIRECTORY, 0, content.rindex(b"/data/0")) + ZIP_METHOD] = zipfile.ZIP_DEFLATED
    path.write_bytes(content)


def cut(path, bytes_left):
    path.write_bytes(path.read_bytes()[:bytes_left])


@pytest.fixture
def run(tmp_path):
    """An output directory with checkpoints 4 and 20 (which sorts before 4 by name)."""
    write_checkpoint(tmp_path, 4)
    write_checkpoint(tmp_path, 20)
    return tmp_path


CUT = r"adapter_model\.safetensors is damaged: .*(metadata|header|file)"
DAMAGES = {
    "no trainer state": (lambda c: (c / "trainer_state.json").unlink(), r"trainer_state\.json is missing"),
    "half a trainer state": (lambda c: cut(c / "trainer_state.json", 9), r"trainer_state\.json is damaged"),
    "a trainer state that is a list": (lambda c: (c / "trainer_state.json").write_text("[]"), "holds no object"),
    "no optimizer": (lambda c: (c / "optimizer.pt").unlink(), r"optimizer\.pt is missing"),
    "half an optimizer": (lambda c: cut(c / "optimizer.pt", 200), r"optimizer\.pt is cut short"),
    "an empty schedule": (lambda c: cut(c / "scheduler.pt", 0), r"scheduler\.pt is cut short"),
    "no schedule": (lambda c: (c / "scheduler.pt").unlink(), r"scheduler\.pt is missing"),
    "no random states": (lambda c: (c / "rng_state.pth").unlink(), "no random states"),
    "half the random states": (lambda c: cut(c / "rng_state.pth", 100), r"rng_state\.pth is cut short"),
    "no weights": (lambda c: (c / "adapter_model.safetensors").unlink(), r"adapter_model\.safetensors is missing"),
    "weights without the last byte": (lambda c: cut(c / "adapter_model.safetensors", -1), CUT),
    "weights with a byte too many": (
        lambda c: (c / "adapter_model.safetensors").write_bytes((c / "adapter_model.safetensors").read_bytes() + b"x"),
        CUT,
    ),
    "half a header": (lambda c: cut(c / "adapter_model.safetensors", 20), CUT),
    "empty weights": (lambda c: cut(c / "adapter_model.safetensors", 0), CUT),
    "a header that is no JSON": (
        lambda c: (c / "adapter_model.safetensors").write_bytes((3).to_bytes(8, "little") + b"abc"),
        r"adapter_model\.safetensors is damaged",
    ),
    "no config": (lambda c: (c / "adapter_config.json").unlink(), r"adapter_config\.json is missing"),
    "half a config": (lambda c: cut(c / "adapter_config.json", 10), r"adapter_config\.json is damaged"),
    "half a recipe": (lambda c: cut(c / "loraga.json", 5), r"loraga\.json is damaged"),
    "a second adapter without weights": (
        lambda c: (write_adapter(c / "other"), (c / "other" / "adapter_model.safetensors").unlink()),
        r"other.adapter_model\.safetensors is missing",
    ),
    "a second adapter cut short": (
        lambda c: (write_adapter(c / "other"), cut(c / "other" / "adapter_model.safetensors", -4)),
        r"other.adapter_model\.safetensors is damaged",
    ),
    "nothing but an empty directory": (lambda c: (shutil.rmtree(c), c.mkdir()), r"trainer_state\.json is missing"),
    "everything but an adapter": (
        lambda c: [(c / n).unlink() for n in ("adapter_model.safetensors", "adapter_config.json", "loraga.json")],
        "holds no weights",
    ),
    "another checkpoint's state": (
        lambda c: (c / "trainer_state.json").write_text('{"global_step": 2}'),
        r"trainer_state\.json is damaged: its step is 2",
    ),
    "a bit of the optimizer": (
        lambda c: flip_in_a_tensor_of_torchs(c / "optimizer.pt"),
        r"optimizer\.pt is damaged: a checksum",
    ),
    "a tensor of the optimizer that is called compressed": (
        lambda c: call_a_tensor_of_torchs_compressed(c / "optimizer.pt"),
        r"optimizer\.pt is damaged: a checksum",
    ),
    "a bit of the random states": (
        lambda c: flip_in_a_tensor_of_torchs(c / "rng_state.pth"),
        r"rng_state\.pth is damaged: a checksum",
    ),
    "a bit of the weights": (
        lambda c: flip(c / "adapter_model.safetensors", -1),
        r"adapter_model\.safetensors is not what was saved",
    ),
    "a bit of a second adapter": (
        lambda c: (write_adapter(c / "other"), flip(c / "other" / "adapter_model.safetensors", -1)),
        r"other.adapter_model\.safetensors is not what was saved",
    ),
    "a shard that is missing": (
        lambda c: (c / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
        r"model-1\.safetensors is missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_checkpoint_is_named_and_the_one_before_is_taken(run, caplog, damage):
    spoil, reason = DAMAGES[damage]
    spoil(run / "checkpoint-20")
    assert newest_complete_checkpoint(run) == run / "checkpoint-4"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(reason, record.getMessage()), record.getMessage()
    assert {path.name for path in run.iterdir()} == {"checkpoint-4", "incomplete-checkpoint-20"}


def test_the_checkpoint_of_most_steps_is_taken_and_nothing_is_said(run, caplog):
    assert newest_complete_checkpoint(run) == run / "checkpoint-20"
    assert newest_complete_checkpoint(str(run)) == run / "checkpoint-20"
    assert not caplog.records


def test_older_checkpoints_are_not_read_to_their_end(run, caplog):
    flip(run / "checkpoint-4" / "adapter_model.safetensors", -1)
    assert newest_complete_checkpoint(run) == run / "checkpoint-20"
    assert not caplog.records


def test_no_directory_and_no_checkpoint_give_none(tmp_path):
    assert newest_complete_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-3").write_text("a file")
    (tmp_path / ".checkpoint-4.saving-x").mkdir()
    assert newest_complete_checkpoint(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-best", "checkpoint-3", ".checkpoint-4.saving-x"}


def test_all_incomplete_ones_are_set_aside_also_older_ones_and_none_replaces_another(run, caplog):
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    (run / "incomplete-checkpoint-4").mkdir()
    assert newest_complete_checkpoint(run) == run / "checkpoint-20"
    assert (run / "incomplete-checkpoint-4-2" / "trainer_state.json").is_file()
    assert "incomplete-checkpoint-4-2" in caplog.text
    assert newest_complete_checkpoint(run) == run / "checkpoint-20"
    assert len(caplog.records) == 1  # what is set aside is not looked at again


def test_looking_alone_moves_nothing(run, caplog):
    (run / "checkpoint-20" / "trainer_state.json").unlink()
    assert newest_complete_checkpoint(run, set_aside=False) == run / "checkpoint-4"
    assert (run / "checkpoint-20").is_dir()
    assert "trainer_state.json is missing" in caplog.text


def test_a_checkpoint_of_the_model_only_is_complete(tmp_path):
    assert why_incomplete(write_checkpoint(tmp_path, 3, resumable=False)) is None


def test_a_checkpoint_of_a_whole_model_is_complete(tmp_path):
    path = write_checkpoint(tmp_path, 3)
    for name in ("adapter_config.json", "loraga.json", "adapter_model.safetensors"):
        (path / name).unlink()
    save_file(ADAPTER, path / "model-1.safetensors")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert why_incomplete(path) is None


def test_a_checkpoint_with_a_named_adapter_only_and_one_random_state_a_rank_is_complete(tmp_path):
    path = write_checkpoint(tmp_path, 3)
    for name in ("adapter_config.json", "loraga.json", "adapter_model.safetensors"):
        (path / name).unlink()
    write_adapter(path / "other", recipe=False)
    (path / "rng_state.pth").rename(path / "rng_state_0.pth")
    torch.save({}, path / "rng_state_1.pth")
    assert why_incomplete(path) is None


def test_a_sharded_checkpoint_needs_no_optimizer_file(tmp_path):
    path = write_checkpoint(tmp_path, 3)
    (path / "optimizer.pt").unlink()
    (path / "optimizer_0").mkdir()
    assert why_incomplete(path) is None


def test_another_process_that_was_faster_is_no_error(run, monkeypatch, caplog):
    (run / "checkpoint-20" / "trainer_state.json").unlink()

    def gone(self, target):
        raise FileNotFoundError(self)

    monkeypatch.setattr(type(run), "rename", gone)
    assert newest_complete_checkpoint(run) == run / "checkpoint-4"
    assert "; now" not in caplog.text
