"""transformers' Trainer on an initialised model: its checkpoints, resuming, the best model at the end."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer

import loraga
from tests.integration.common import (
    STEPS,
    Diary,
    adapter_state,
    assert_moved,
    assert_same,
    base,
    eval_logits,
    read,
    started,
    train_logits,
    trainer,
)
from tests.models import batches, relative_difference, with_lora


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(output directory, diary, model) of one run that was never interrupted."""
    output, diary, model = tmp_path_factory.mktemp("run"), Diary(), started()
    trainer(model, output, callbacks=[diary]).train()
    return output, diary, model


def test_the_run_trains_and_leaves_the_base_as_it_was(run):
    _, diary, model = run
    assert_moved(diary.states[STEPS], diary.states[2])
    with model.disable_adapter():
        assert torch.equal(eval_logits(model), eval_logits(base()))
    offsets = {key: value for key, value in adapter_state(started()).items() if "lora_offset" in key}
    assert_same({key: diary.states[STEPS][key] for key in offsets}, offsets)


def test_checkpoints_load_with_plain_peft_where_loraga_cannot_be_imported(run, processes, tmp_path):
    output, diary, model = run
    loraga.export(model, tmp_path / "exported")
    model.save_pretrained(tmp_path / "saved")
    checkpoints = {output / f"checkpoint-{step}": diary.logits[step] for step in (4, STEPS)}
    expected = {**checkpoints, tmp_path / "exported": diary.logits[STEPS], tmp_path / "saved": diary.logits[STEPS]}
    processes.run("plain_peft", without_loraga=True, directories=list(expected), output=tmp_path / "logits")
    found = read(tmp_path / "logits")
    for directory, logits in expected.items():
        assert relative_difference(found[str(directory)], logits) <= 1e-5
    assert relative_difference(diary.logits[4], diary.logits[STEPS]) > 1e-3
    assert relative_difference(diary.logits[STEPS], eval_logits(base())) > 1e-3


@pytest.mark.parametrize("other", [{}, {"seed": 4, "gamma": 64}], ids=["the same start", "another start"])
def test_resuming_in_the_same_process_ends_bit_for_bit_alike(run, tmp_path, other):
    output, diary, _ = run
    model = started(**other)
    trainer(model, tmp_path).train(resume_from_checkpoint=str(output / "checkpoint-4"))
    assert_same(adapter_state(model), diary.states[STEPS])
    assert torch.equal(eval_logits(model), diary.logits[STEPS])


def test_resuming_in_a_new_process_ends_bit_for_bit_alike(run, processes, tmp_path):
    output, diary, _ = run
    processes.run("resume", checkpoint=output / "checkpoint-4", run=tmp_path / "run", output=tmp_path / "end")
    assert_same(read(tmp_path / "end"), diary.states[STEPS])


class BestAtStep4(Trainer):
    def evaluate(self, *args, **kwargs):
        metrics = {"eval_distance": float(abs(self.state.global_step - 4))}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def test_the_best_model_at_the_end_is_the_best_checkpoints_bit_for_bit(run, tmp_path):
    _, diary, _ = run
    model = started()
    best = trainer(
        model,
        tmp_path,
        kind=BestAtStep4,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_distance",
        greater_is_better=False,
        save_total_limit=1,
    )
    best.train()
    assert best.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert_same(adapter_state(model), diary.states[4])
    assert torch.equal(eval_logits(model), diary.logits[4])
    reloaded = loraga.load(base(), tmp_path / "checkpoint-4")
    assert torch.equal(eval_logits(reloaded), diary.logits[4])


def test_an_optimizer_made_before_initialize_stays_valid(run, tmp_path):
    _, diary, _ = run
    model = with_lora(base(), lora_dropout=0.1)
    early = trainer(model, tmp_path, save_strategy="no")
    early.create_optimizer()
    optimizer = early.optimizer
    loraga.initialize(model, batches("Llama"), gamma=16, progress=False)
    early.train()
    assert early.optimizer.optimizer is optimizer
    assert_same(adapter_state(model), diary.states[STEPS])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_trains_alike(run, tmp_path, reentrant):
    _, diary, _ = run
    model = started()
    trainer(
        model,
        tmp_path,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": reentrant},
    ).train()
    assert_same(adapter_state(model), diary.states[STEPS])
    reloaded = loraga.load(base(), tmp_path / f"checkpoint-{STEPS}")
    assert torch.equal(eval_logits(reloaded), diary.logits[STEPS])


def test_a_start_made_with_checkpointing_on_is_the_same_and_exact(run):
    model = with_lora(base(), lora_dropout=0.1)
    model.get_base_model().activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    loraga.initialize(model, batches("Llama"), gamma=16, progress=False)
    assert_same(adapter_state(model), adapter_state(started()))
    assert torch.equal(train_logits(model), eval_logits(base()))


def test_a_checkpoint_into_a_model_that_was_not_initialised_is_an_error(run, tmp_path):
    output, _, _ = run
    plain = with_lora(base(), lora_dropout=0.1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer(plain, tmp_path).train(resume_from_checkpoint=str(output / "checkpoint-4"))
