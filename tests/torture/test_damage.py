"""Each file that is written, cut short or with one bit changed: the same result, or a loud error that names the file.

A bit changed within the tensors of an adapter is found by the checksum in `loraga.json`, of a checkpoint's optimizer by
torch's own, of gradients by theirs. What has no checksum is said so in a test: a plain LoRA, a merged model, and files
whose content Trainer alone knows.
"""

from __future__ import annotations

import pickle
import random
import re
import shutil
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError

import loraga
from loraga.checkpoint import newest_complete_checkpoint, why_incomplete
from tests import models
from tests.integration.common import adapter_state, trainer
from tests.test_checkpoint import ZIP_DIRECTORY, write_checkpoint
from tests.torture.test_faults_files import base, trained

FILES = ("adapter_model.safetensors", "adapter_config.json", "loraga.json", "loraga_report.json")
SETTINGS = {"modules_to_save": ["lm_head"], "bias": "lora_only", "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A saved adapter with everything in it, and what it gives."""
    folder = tmp_path_factory.mktemp("whole")
    trained(**SETTINGS).save_pretrained(folder)
    return folder, result_of(folder)


def result_of(folder):
    """What is trained on and what is given: all tensors, scalings, and the logits."""
    model = loraga.load(base(), folder)
    scalings = {name: each.scaling for name, each in model.named_modules() if hasattr(each, "scaling")}
    logits = models.logits(model.eval(), models.batches("Llama", 1, 9)[0])
    return {name: tensor.numpy().tobytes() for name, tensor in adapter_state(model).items()}, scalings, logits


def same(one, other):
    return one[:2] == other[:2] and torch.equal(one[2], other[2])


def flipped(content, position, bit):
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def damages(content, count, seed):
    """The content cut short, and with one bit changed, at places that a seed draws."""
    draw = random.Random(seed)
    yield from (content[: draw.randrange(len(content))] for _ in range(count // 4))
    yield from (flipped(content, draw.randrange(len(content)), draw.randrange(8)) for _ in range(count - count // 4))


def every_damage_is_harmless_or_found(whole, name, folder, count):
    shutil.copytree(whole[0], folder, dirs_exist_ok=True)
    content, found = (folder / name).read_bytes(), 0
    for damaged in damages(content, count, seed=FILES.index(name)):
        (folder / name).write_bytes(damaged)
        result, error = None, None
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                result = result_of(folder)
        except (loraga.LoragaError, ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as raised:
            error = raised
        if error is not None:
            found += 1
            # PEFT's own words on a setting of its own are enough
            assert isinstance(error, loraga.LoragaError) or name == "adapter_config.json", repr(error)
            if isinstance(error, loraga.LoragaError):
                assert name in str(error) or "adapter_config.json" in str(error), error
                assert re.search("again|holds no|format|not in adapter|was changed", str(error)), error
        else:
            unknown_key = any("Unexpected keyword" in str(each.message) for each in warned)  # PEFT's warning
            assert same(result, whole[1]) or (unknown_key and torch.equal(result[2], whole[1][2])), damaged
    (folder / name).write_bytes(content)
    assert same(result_of(folder), whole[1])
    return found


@pytest.mark.sampled
@pytest.mark.parametrize("name", FILES)
def test_some_damages_of_an_adapter_are_harmless_or_found(whole, name, tmp_path, record_property):
    count = 16
    found = every_damage_is_harmless_or_found(whole, name, tmp_path, count)
    assert (found == 0) == (name == "loraga_report.json")
    record_property("damaged files", count)


@pytest.mark.torture
@pytest.mark.parametrize("name", FILES)
def test_damages_of_an_adapter_are_harmless_or_found(whole, name, tmp_path, record_property):
    count = 150
    every_damage_is_harmless_or_found(whole, name, tmp_path, count)
    record_property("damaged files", count)


def test_a_bit_within_the_weights_is_found_where_there_is_a_checksum_and_not_by_plain_peft(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    weights = tmp_path / FILES[0]
    weights.write_bytes(flipped(weights.read_bytes(), -2, 6))
    with pytest.raises(loraga.SaveError, match=r"adapter_model\.safetensors is not what was saved with loraga\.json"):
        loraga.load(base(), tmp_path)
    model = trained(seed=3, **SETTINGS)
    before = adapter_state(model)
    with pytest.raises(loraga.SaveError, match="their checksums differ"):
        model.load_adapter(str(tmp_path), "default")
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter_state(model).items())
    PeftModel.from_pretrained(base(), str(tmp_path))  # it does not look
    (tmp_path / "loraga.json").unlink()  # as the message says
    loraga.load(base(), tmp_path)


@pytest.mark.parametrize("key", ["r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"])
def test_a_config_that_contradicts_the_recipe_is_refused(whole, tmp_path, key):
    import json

    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    for name in ("adapter_config.json", "loraga.json"):
        content = json.loads((tmp_path / name).read_text())
        values = content if name == "adapter_config.json" else content["config"]
        values[key] = {"r": 8, "lora_alpha": 9, "use_rslora": not values["use_rslora"]}.get(key, {"q_proj": 3})
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(loraga.SaveError, match=r"adapter_config\.json says|is not in adapter"):
            loraga.load(base(), tmp_path)
        shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    loraga.load(base(), tmp_path)


def test_an_earlier_versions_recipe_without_a_checksum_is_read(whole, tmp_path):
    import json

    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "loraga.json").read_text())
    del content["sha256"]
    (tmp_path / "loraga.json").write_text(json.dumps(content))
    assert same(result_of(tmp_path), whole[1])


def test_a_merged_model_cut_short_is_refused_and_has_no_checksum(tmp_path):
    loraga.export(trained(), tmp_path, merge=True)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for length in range(0, len(content), len(content) // 9):
        weights.write_bytes(content[:length])
        with pytest.raises((SafetensorError, OSError), match=r"(?i)header|file|incomplete|metadata"):
            type(base()).from_pretrained(tmp_path)
    weights.write_bytes(flipped(content, -2, 6))
    type(base()).from_pretrained(tmp_path)  # transformers does not look


def test_a_damaged_checkpoint_is_not_resumed_from(tmp_path, record_property, caplog):
    """Of each file that Trainer wrote: cut short always; a changed bit where it changes what is resumed."""
    trainer(trained(lora_dropout=0.1), tmp_path, max_steps=4).train()
    newest, before = tmp_path / "checkpoint-4", tmp_path / "checkpoint-2"
    assert newest_complete_checkpoint(tmp_path) == newest
    count = 0
    for path in sorted(newest.iterdir()):
        if path.name in ("README.md", "training_args.bin", "loraga_report.json"):
            continue  # nobody resumes from these
        content = path.read_bytes()
        for damaged in (content[:-2], content[: len(content) // 2], b""):
            count += 1
            path.write_bytes(damaged)
            assert newest_complete_checkpoint(tmp_path, set_aside=False) == before, path.name
            assert path.name in caplog.messages[-1]
        path.write_bytes(content)
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "adapter_model.safetensors"):
        content = (newest / name).read_bytes()
        draw = random.Random(1)
        for _ in range(12):
            count += 1
            (newest / name).write_bytes(flipped(content, draw.randrange(len(content)), draw.randrange(8)))
            if newest_complete_checkpoint(tmp_path, set_aside=False) == newest:
                assert equal_contents(newest / name, content), name
        (newest / name).write_bytes(content)
    assert newest_complete_checkpoint(tmp_path) == newest
    record_property("damaged files", count)


def every_bit_of_an_archives_directory_is_harmless_or_found(folder, step):
    """What zipfile says to a damaged file, by errors of many kinds, comes out as one sentence."""
    archive = write_checkpoint(folder, 2) / "optimizer.pt"
    whole = {"moment": torch.arange(8.0), "step": [1, 2]}
    torch.save(whole, archive)
    content, found = archive.read_bytes(), 0
    numbers = range(8 * content.index(ZIP_DIRECTORY), 8 * len(content), step)
    for number in numbers:
        archive.write_bytes(flipped(content, number // 8, number % 8))
        if why_incomplete(archive.parent) is not None:
            found += 1
            continue
        try:
            loaded = torch.load(archive, weights_only=True)
        except (
            RuntimeError,
            ValueError,
            pickle.UnpicklingError,
        ):  # torch's own reader minds flags that zipfile does not
            continue
        assert repr(loaded) == repr(whole), number
    assert 0 < found < len(numbers)
    return len(numbers)


@pytest.mark.sampled
def test_some_bits_of_an_archives_directory_are_harmless_or_found(tmp_path, record_property):
    record_property("damaged files", every_bit_of_an_archives_directory_is_harmless_or_found(tmp_path, 29))


@pytest.mark.torture
def test_every_bit_of_an_archives_directory_is_harmless_or_found(tmp_path, record_property):
    record_property("damaged files", every_bit_of_an_archives_directory_is_harmless_or_found(tmp_path, 1))


def equal_contents(path, content):
    """Whether a file of torch's holds the same values although its bytes differ, in padding or in dates."""
    assert path.suffix in (".pt", ".pth"), path
    other = path.with_name("whole.bin")
    other.write_bytes(content)
    one, two = (torch.load(each, weights_only=True) for each in (path, other))
    other.unlink()
    return repr(one) == repr(two)
