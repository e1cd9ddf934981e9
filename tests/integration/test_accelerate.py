"""Whole-model states: accelerate's, torch's, PEFT's own dictionaries; two processes that train together."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_model

from tests.integration.common import (
    adapter_state,
    assert_moved,
    assert_same,
    base,
    eval_logits,
    read,
    rows,
    started,
    train_logits,
)
from tests.integration.jobs import manual_steps
from tests.models import with_lora


@pytest.fixture
def trained():
    """A model a few steps after its start, with its optimizer."""
    model = started()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        manual_steps(model, optimizer, 3)
    return model, optimizer


def test_states_of_the_whole_model_are_loaded_in_a_new_process(trained, processes, tmp_path):
    model, optimizer = trained
    logits, state = eval_logits(model), adapter_state(model)
    save_model(model, tmp_path / "state.safetensors")
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.save_state(str(tmp_path / "accelerate"))
    manual_steps(model, optimizer, 2)  # from the random state that was saved
    processes.run("load_saved_state", directory=tmp_path, output=tmp_path / "end")
    assert_same(read(tmp_path / "end.accelerate"), adapter_state(model))
    assert_moved(state, adapter_state(model))
    loaded = read(tmp_path / "end.state")
    assert torch.equal(loaded.pop("logits"), logits)
    assert_same(loaded, state)


@pytest.mark.parametrize("other", [{}, {"seed": 4, "gamma": 64}], ids=["the same start", "another start"])
def test_state_dicts_round_trip_bit_for_bit(trained, other):
    model, _ = trained
    whole = started(**other)
    whole.load_state_dict(model.state_dict())
    adapter = started(**other)
    set_peft_model_state_dict(adapter, get_peft_model_state_dict(model))
    for loaded in (whole, adapter):
        assert_same(adapter_state(loaded), adapter_state(model))
        assert torch.equal(eval_logits(loaded), eval_logits(model))
        assert torch.equal(train_logits(loaded), train_logits(model))


def test_a_state_for_a_model_without_a_start_is_not_loaded_in_silence(trained):
    model, _ = trained
    plain = with_lora(base(), lora_dropout=0.1)
    result = set_peft_model_state_dict(plain, get_peft_model_state_dict(model))
    offsets = [key for key in model.state_dict() if "lora_offset" in key]
    assert offsets
    assert len(result.unexpected_keys) == len(offsets)
    with pytest.raises(RuntimeError, match="lora_offset_A"):
        plain.load_state_dict(model.state_dict())


def test_two_processes_train_alike_and_do_not_broadcast_the_start(processes, tmp_path):
    ranks = [{"rank": rank, "rendezvous": tmp_path / "meet", "output": tmp_path / "end"} for rank in (0, 1)]
    assert processes.statuses("distributed", ranks) == [0, 0], processes.output()
    first, second = read(tmp_path / "end.0"), read(tmp_path / "end.1")
    assert_same(first, second)
    alone = started(lora_dropout=0.0)
    start = adapter_state(alone)
    optimizer = torch.optim.SGD([p for p in alone.parameters() if p.requires_grad], lr=0.5)
    data = rows(8)
    for step in range(3):  # the mean of both ranks' losses, in one process
        batch = {key: torch.stack([row[key] for row in data[2 * step : 2 * step + 2]]) for key in data[0]}
        alone(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_moved(start, first)
    for key, tensor in adapter_state(alone).items():
        rounding = 1e-5 * float(tensor.abs().max())  # sums in another order round by the size of what is summed
        torch.testing.assert_close(first[key], tensor, rtol=1e-4, atol=rounding)
