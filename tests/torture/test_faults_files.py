"""An exception at every step of writing and reading in turn: folder and model are as they were, or all is done."""

from __future__ import annotations

import shutil
from functools import cache, partial

import pytest
import torch

import loraga
from tests import models
from tests.architectures.decoders import decoder
from tests.integration.common import adapter_state, assert_same
from tests.torture.faults import Injected, Point, fails, points
from tests.torture.snapshot import differences, snapshot

TARGETS = ["q_proj", "down_proj"]
BATCHES = models.batches("Llama", 2)
ERRORS = {"any error": (Injected, 3), "Ctrl-C": (KeyboardInterrupt, 1), "a full disk": (OSError, 1)}  # every n-th point
SAMPLE = 24  # in the ordinary run, every 24th point
LATE = 5  # points after which all is done already: tidying, and what `export` returns


def base():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return decoder("Llama").build().eval()


def trained(rank=2, seed=0, **settings):
    """An adapter with a start that has moved away from it."""
    model = models.with_lora(base(), r=rank, target_modules=TARGETS, **settings)
    loraga.initialize(model, models.batches("Llama", 2, seed=1 + seed), progress=False)
    models.train(model, BATCHES, 2)
    return model


def content(folder):
    """Bytes by file; safetensors do not order what a gradients file says about itself."""
    return {
        str(path.relative_to(folder)): sorted(path.read_bytes()) if path.name == "g.safetensors" else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def save(model, folder):
    model.save_pretrained(str(folder))


@cache
def gradients(seed):
    return loraga.estimate_gradients(base(), models.batches("Llama", 2, seed=seed), 2, progress=False)


def save_gradients(seed, folder):
    loraga.save_gradients(gradients(seed), folder / "g.safetensors")


@cache
def another():
    return trained(rank=3, seed=1)


def an_adapter_with_files_of_others(folder):
    save(another(), folder)
    (folder / "mine.txt").write_text("mine")


def an_adapter_beside_a_folder_of_others(folder):
    an_adapter_with_files_of_others(folder)
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_text("mine")


WRITES = {
    "save_pretrained, afresh": (lambda folder: None, save),
    "save_pretrained, exchanged": (an_adapter_with_files_of_others, save),
    "save_pretrained, file by file": (an_adapter_beside_a_folder_of_others, save),
    "export": (an_adapter_with_files_of_others, loraga.export),
    "export, compressed": (an_adapter_with_files_of_others, lambda model, folder: loraga.export(model, folder, rank=1)),
    "export, merged": (an_adapter_with_files_of_others, lambda model, folder: loraga.export(model, folder, merge=True)),
    "save_gradients": (partial(save_gradients, 1), lambda model, folder: save_gradients(2, folder)),
}


def every_point_leaves_the_folder_as_it_was(name, error, step, tmp_path, offset=0):
    prepare, write = WRITES[name]
    model, target, example = trained(), tmp_path / "adapter", tmp_path / "example" / "adapter"
    prepare(example)
    write(model, example)  # whatever is imported or kept at the first call is there
    shutil.rmtree(example)
    prepare(example)
    with points(Point()) as counted:
        write(model, example)
    prepare(target)
    old, new, before = content(target), content(example), snapshot(model)
    assert old != new
    late, numbers = 0, range(offset, len(counted.passed), step)
    for number in numbers:
        where = f"point {number} of {len(counted.passed)}, {counted.passed[number]}"
        failed = fails(Point(number, error), write, model, target)
        assert not differences(before, snapshot(model)), where
        after = content(target)
        assert after in ((old, new) if failed else (new,)), where
        if after == new:
            late += failed
            shutil.rmtree(target)
            prepare(target)
        assert not list(tmp_path.rglob(".*.saving-*")), where
    assert late <= LATE
    write(model, target)
    assert content(target) == new
    return len(numbers)


@pytest.mark.sampled
@pytest.mark.parametrize("name", WRITES)
def test_a_failure_at_some_points_leaves_the_folder_as_it_was(name, tmp_path, record_property):
    tried = every_point_leaves_the_folder_as_it_was(name, OSError, SAMPLE, tmp_path, offset=5)
    record_property("injection points", tried)


@pytest.mark.torture
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", WRITES)
def test_a_failure_at_any_point_leaves_the_folder_as_it_was(name, error, tmp_path, record_property):
    record_property("injection points", every_point_leaves_the_folder_as_it_was(name, *ERRORS[error], tmp_path))


# ---- reading


def load(model, folder):
    return loraga.load(model, folder, is_trainable=True)


def resume(model, folder):
    model.load_adapter(str(folder), "default", is_trainable=True)
    return model


def load_beside(model, folder):
    model.load_adapter(str(folder), "other", is_trainable=True)
    return model


EVERYTHING = {"modules_to_save": ["lm_head"], "bias": "lora_only"}
READS = {
    "load": (lambda: trained(**EVERYTHING), base, load),
    "load a plain LoRA": (lambda: models.with_lora(base(), target_modules=TARGETS), base, load),
    "load_adapter, resuming": (lambda: trained(**EVERYTHING), lambda: trained(seed=2, **EVERYTHING), resume),
    "load_adapter, a plain LoRA": (
        lambda: models.with_lora(base(), target_modules=TARGETS),
        lambda: trained(seed=2),
        resume,
    ),
    "load_adapter, beside another": (trained, lambda: trained(seed=2), load_beside),
}


def every_point_leaves_the_model_as_it_was(name, error, step, tmp_path, offset=0):
    saved, make, read = READS[name]
    save(saved(), tmp_path)
    read(make(), tmp_path)
    fresh, model = make(), make()
    with points(Point()) as counted:
        expected = read(fresh, tmp_path)
    before = snapshot(model)
    numbers = range(offset, len(counted.passed), step)
    for number in numbers:
        where = f"point {number} of {len(counted.passed)}, {counted.passed[number]}"
        assert fails(Point(number, error), read, model, tmp_path), where
        assert not differences(before, snapshot(model)), where
    loaded = read(model, tmp_path)
    for adapter_name in expected.peft_config:
        assert_same(adapter_state(loaded, adapter_name), adapter_state(expected, adapter_name))
    return len(numbers)


@pytest.mark.sampled
@pytest.mark.parametrize("name", READS)
def test_a_failure_at_some_points_of_reading_leaves_the_model_as_it_was(name, tmp_path, record_property):
    record_property("injection points", every_point_leaves_the_model_as_it_was(name, Injected, SAMPLE, tmp_path, 5))


@pytest.mark.torture
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", READS)
def test_a_failure_at_any_point_of_reading_leaves_the_model_as_it_was(name, error, tmp_path, record_property):
    record_property("injection points", every_point_leaves_the_model_as_it_was(name, *ERRORS[error], tmp_path))
