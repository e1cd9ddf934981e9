"""`initialize_trainer` itself: what it refuses and warns of, and what it leaves for the start of training."""

from __future__ import annotations

import json
import socket

import datasets
import pytest
import torch
import trl
from transformers import Trainer
from trl import RLOOTrainer, SFTTrainer

import loraga
from loraga import AdapterError, BatchError
from loraga.layers import lora_layers
from tests import models
from tests.integration.common import adapter_state, assert_moved, assert_same, eval_logits, read
from tests.integration.trainers import CHECKPOINTING_NAME, TRAINERS, completion_rows, token_rows

PLAIN, SFT, DPO, GRPO = (TRAINERS[name] for name in ("Trainer", "SFTTrainer", "DPOTrainer", "GRPOTrainer"))


def start(trainer, batches=2, **keywords):
    return loraga.initialize_trainer(trainer, batches, progress=False, **keywords)


# ---- what is refused before training


@pytest.mark.parametrize("kind", [PLAIN, SFT, DPO], ids=["Trainer", "SFTTrainer", "DPOTrainer"])
def test_a_trainer_without_an_adapter_is_an_error_that_says_how_to_give_it_one(kind, tmp_path):
    given = {"ref_model": kind.base()} if kind is DPO else {}
    with pytest.raises(AdapterError, match=r"no LoRA adapter: wrap it before .*LoraConfig.*or pass .* as peft_config="):
        start(with_extra(kind, **given).make(tmp_path, kind.base()))


def with_extra(kind, **extra):
    from dataclasses import replace

    return replace(kind, extra={**kind.extra, **extra})


def test_a_trained_adapter_is_an_error(tmp_path):
    model = PLAIN.peft_model()
    models.train(model, models.batches("Llama"))
    with pytest.raises(AdapterError, match="adapter 'default' is trained already"):
        start(PLAIN.make(tmp_path, model))


def test_starting_twice_is_an_error(tmp_path):
    trainer = SFT.make(tmp_path)
    start(trainer)
    with pytest.raises(AdapterError, match="is initialised already"):
        start(trainer)


def test_a_trainer_that_has_trained_is_an_error(tmp_path):
    trainer = PLAIN.make(tmp_path, save_strategy="no", max_steps=1)
    trainer.train()
    with pytest.raises(AdapterError, match=r"trained for 1 steps; .*make a new trainer with a new adapter"):
        start(trainer)


def test_batches_without_labels_are_an_error_that_names_their_keys(tmp_path):
    rows = [{"input_ids": row["input_ids"]} for row in token_rows()]
    trainer = PLAIN.make(tmp_path, train_dataset=rows)
    with pytest.raises(BatchError, match=r"no labels \(their keys: input_ids\): .*DataCollatorForLanguageModeling"):
        start(trainer)


def test_a_trainer_whose_own_loss_needs_no_labels_counts_examples(tmp_path):
    class Logits(Trainer):
        def compute_loss(self, model, inputs, num_items_in_batch=None):
            return model(**inputs).logits.square().mean()

    rows = [{"input_ids": row["input_ids"]} for row in token_rows()]
    assert start(PLAIN.make(tmp_path, kind=Logits, train_dataset=rows)).loss_terms == 4


def packed(targets):
    """Rows as packing makes them, of which some have no target left."""
    ids = [list(range(5, 15))] * len(targets)
    labels = [row if target else [-100] * 10 for row, target in zip(ids, targets, strict=True)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})


def packed_trainer(tmp_path, targets):
    return SFT.make(
        tmp_path, train_dataset=packed(targets), train_sampling_strategy="sequential", shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip


def test_packing_that_leaves_no_target_at_all_is_an_error(tmp_path):
    with pytest.raises(BatchError, match=r"none of the 2 batches has a target: .*raise max_length"):
        start(packed_trainer(tmp_path, [False] * 4))


def test_a_packed_batch_without_target_is_left_out_and_named(tmp_path):
    with pytest.warns(UserWarning, match=r"batches 1 of 3 have no target .* left out.*raise max_length"):
        report = start(packed_trainer(tmp_path, [True, True, False, False, True, True]), 3)
    assert report.loss_terms == 2 * 2 * 9


def streaming(rows):
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


def test_a_stream_shorter_than_asked_is_used_whole_with_a_warning(tmp_path):
    trainer = SFT.make(tmp_path, train_dataset=streaming(completion_rows().to_list()[:5]))
    with pytest.warns(UserWarning, match=r"ends after 3 batches, and 8 were asked for: those 3 are used"):
        loraga.initialize_trainer(trainer, progress=False)


def test_one_epoch_of_a_stream_can_be_asked_for(tmp_path):
    rows = completion_rows().to_list()[:5]
    report = start(SFT.make(tmp_path, train_dataset=streaming(rows)), None)
    assert report.loss_terms == sum(len(row["completion"].split()) + 1 for row in rows)  # </s> too


def test_a_stream_that_ends_at_once_is_an_error(tmp_path):
    trainer = PLAIN.make(tmp_path, train_dataset=Stream([]))
    with pytest.raises(BatchError, match="train_dataset gives no batch"):
        start(trainer)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class ReadOnce(Stream):
    def __iter__(self):
        return self

    def __next__(self):
        return self.rows.pop(0)


def test_a_stream_that_can_be_read_only_once_is_an_error_and_not_read(tmp_path):
    rows = token_rows()
    with pytest.raises(BatchError, match="can be read only once, so that training would miss"):
        start(PLAIN.make(tmp_path, train_dataset=ReadOnce(rows)))
    assert len(rows) == len(token_rows())


def test_a_trainer_without_data_is_an_error(tmp_path):
    with pytest.raises(BatchError, match="no train_dataset"):
        start(PLAIN.make(tmp_path, train_dataset=None))


def test_rewards_that_tell_nothing_apart_are_an_error(tmp_path):
    same = with_extra(GRPO, reward_funcs=lambda completions, **_: [1.0] * len(completions))
    with pytest.raises(BatchError, match="all advantages of the 2 batches are zero: no reward tells"):
        start(same.make(tmp_path))


@pytest.mark.parametrize(("version", "warned"), [("0.29.1", True), ("1.0.0", False), ("1.17.0", True)])
def test_a_trl_outside_the_tested_range_is_warned_of(tmp_path, monkeypatch, version, warned):
    trainer = SFT.make(tmp_path)
    monkeypatch.setattr(trl, "__version__", version)
    if warned:
        with pytest.warns(UserWarning, match=rf"trl {version} has not been tested, only 1.0 up to below 1.17"):
            start(trainer)
    else:
        start(trainer)


def test_a_trainer_of_trl_that_is_not_known_is_an_error_that_says_what_to_call():
    trainer = object.__new__(RLOOTrainer)
    with pytest.raises(AdapterError, match=r"TRL's SFTTrainer, .*, not RLOOTrainer; call loraga.initialize\(model, "):
        start(trainer)


def test_something_that_is_no_trainer_is_an_error():
    with pytest.raises(AdapterError, match=r"not Linear; call loraga\.initialize"):
        start(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_batches": 4}, "takes batches=, not num_batches="),
        ({"ofset": "none"}, r"unexpected keyword argument 'ofset'; did you mean 'offset'\?"),
        ({"zzz": 1}, "unexpected keyword argument 'zzz'$"),
    ],
)
def test_a_wrong_keyword_is_an_error_that_names_the_nearest(tmp_path, keywords, message):
    with pytest.raises(AdapterError, match=message):
        start(PLAIN.make(tmp_path), **keywords)


def test_kernels_that_go_around_the_adapter_are_found_and_the_model_is_as_it_was(tmp_path):
    """What fused LoRA kernels do: they compute the adapted layer from its factors alone."""
    model = PLAIN.peft_model()
    layer = next(iter(lora_layers(model, "default").values()))

    def fused(x, *args, **kwargs):
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        return layer.base_layer(x) + x @ A.T @ B.T * layer.scaling["default"]

    layer.forward = fused
    before, policy = adapter_state(model), eval_logits(model)
    with pytest.raises(loraga.OffsetError, match="fused LoRA kernels or a wrapper"):
        start(PLAIN.make(tmp_path, model))
    assert_same(adapter_state(model), before)
    assert torch.equal(eval_logits(model), policy)


# ---- keywords


def test_the_keywords_of_initialize_reach_it(tmp_path):
    report = start(PLAIN.make(tmp_path), offset="none", gamma=131072, estimator="exact", scheme="lora_ga", seed=3)
    assert (report.offset, report.gamma, report.estimator) == ("none", 131072, "exact")


def test_a_loss_and_a_weight_of_the_callers_replace_the_trainers(tmp_path):
    seen = []

    def loss(model, batch):
        seen.append(batch)
        return model(**batch).loss

    report = start(PLAIN.make(tmp_path), loss=loss, weight=lambda batch: 3.0)
    assert report.loss_terms == 6
    assert seen


def test_a_loss_function_of_the_users_gets_the_number_of_items_as_in_training(tmp_path):
    def summed(outputs, labels, num_items_in_batch):
        losses = torch.nn.functional.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        return losses / num_items_in_batch

    own, models_own = PLAIN.peft_model(), PLAIN.peft_model()
    start(PLAIN.make(tmp_path, own, compute_loss_func=summed))
    start(PLAIN.make(tmp_path, models_own))
    for key, tensor in adapter_state(own).items():
        torch.testing.assert_close(tensor, adapter_state(models_own)[key], rtol=1e-3, atol=1e-4)


def test_a_subclass_of_a_known_trainer_is_taken_for_it(tmp_path):
    class Mine(SFTTrainer):
        pass

    assert start(SFT.make(tmp_path, kind=Mine)).loss_terms > 0


def test_a_collators_own_generator_goes_on_as_if_nothing_had_been_read(tmp_path):
    class Masking:
        def __init__(self):
            self.generator = torch.Generator().manual_seed(1)

        def __call__(self, rows):
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            hidden = torch.rand(batch["labels"].shape, generator=self.generator) < 0.3
            return {**batch, "labels": batch["labels"].masked_fill(hidden, -100)}

    trainer = PLAIN.make(tmp_path, data_collator=Masking())
    before = trainer.data_collator.generator.get_state()
    start(trainer)
    assert torch.equal(trainer.data_collator.generator.get_state(), before)


def test_a_dataloader_that_is_made_once_begins_where_it_would_have(tmp_path):
    class OneLoader(Trainer):
        def get_train_dataloader(self):
            if not hasattr(self, "loader"):
                self.loader = torch.utils.data.DataLoader(
                    self.train_dataset, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(2)
                )
            return self.loader

    trainer, other = (PLAIN.make(tmp_path, kind=OneLoader) for _ in range(2))
    trainer.get_train_dataloader()
    start(trainer)
    first, expected = next(iter(trainer.loader)), next(iter(other.get_train_dataloader()))
    assert torch.equal(first["input_ids"], expected["input_ids"])


@pytest.mark.parametrize("kind", [PLAIN, DPO], ids=["Trainer", "DPOTrainer"])
def test_checkpointing_that_training_will_use_is_used_here_and_changes_nothing(kind, tmp_path):
    starts, calls = [], []
    for checkpointing in (False, True):
        model = kind.peft_model()
        block = model.get_base_model().model.layers[0]
        count = [0]
        block.mlp.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        start(kind.make(tmp_path, model, **{CHECKPOINTING_NAME: checkpointing}), check=False)
        starts.append(adapter_state(model))
        calls.append(count[0])
    assert_same(*starts)
    assert calls[1] == calls[0] + 2  # each batch's block is run again in backward


def test_a_run_that_an_older_trainer_would_resume_without_its_policy_is_warned_of(monkeypatch, tmp_path):
    monkeypatch.setattr("loraga.trainer.RESUMES_ALL_ADAPTERS", "99")
    with pytest.warns(UserWarning, match="by loading ref alone: 'default' would go on untrained"):
        start(DPO.make(tmp_path, DPO.peft_model()))
    assert start(DPO.make(tmp_path, DPO.base(), peft_config=DPO.peft_config())) is not None  # warns of nothing


# ---- at the start of training


def test_a_wrapped_model_is_started_when_training_starts(tmp_path, caplog):
    first = PLAIN.peft_model(lora_dropout=0.0)
    start(PLAIN.make(tmp_path, first))
    model = PLAIN.peft_model(lora_dropout=0.0)
    trainer = PLAIN.make(tmp_path, model, learning_rate=0.0, max_steps=1, save_strategy="no")
    trainer.model_wrapped = Wrapper(model)
    trainer.create_optimizer()
    before = adapter_state(model)
    with caplog.at_level("INFO", "loraga"):
        assert start(trainer) is None
    assert "will be started when training starts" in caplog.text
    assert_same(adapter_state(model), before)
    trainer.train()
    assert_same(adapter_state(model), adapter_state(first))
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.requires_grad} <= trained


class Wrapper(torch.nn.parallel.DataParallel):
    """A wrapper that one process can make."""

    def __init__(self, module):
        super().__init__(module, device_ids=[])

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_a_wrapped_model_that_goes_on_from_a_checkpoint_keeps_the_checkpoints_start(tmp_path, caplog):
    first = PLAIN.peft_model()
    trainer = PLAIN.make(tmp_path / "first", first)
    start(trainer)
    trainer.train()
    model = PLAIN.peft_model()
    trainer = PLAIN.make(tmp_path / "second", model)
    trainer.model_wrapped = Wrapper(model)
    assert start(trainer, 4) is None
    with caplog.at_level("INFO", "loraga"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    assert "goes on at step 2: the checkpoint's start stands" in caplog.text
    assert_same(adapter_state(model), adapter_state(first))


def test_a_model_that_fsdp2_has_sharded_gets_the_start_of_one_that_is_sharded_later(processes, tmp_path):
    port = free_port()
    ranks = [{"rank": rank, "port": port, "output": tmp_path / "out"} for rank in (0, 1)]
    assert processes.statuses("sharded_trainer", ranks) == [0, 0], processes.output()
    found = read(tmp_path / "out.0")
    assert_same(found, read(tmp_path / "out.1"))
    before, after = (
        {key.removeprefix(name): tensor for key, tensor in found.items() if key.startswith(name)}
        for name in ("before", "after")
    )
    start, end = ({k.split()[-1]: before[k] for k in before if k.split()[0] == name} for name in ("start", "end"))
    starts = [tensor for key, tensor in start.items() if "lora_offset_B" in key]
    assert len(starts) == 14
    assert all(tensor.any() for tensor in starts)
    assert_moved(start, end)
    norms = [key for key in before if key.split()[0] == "norm"]
    for key in norms:  # of a weight that is summed in parts
        assert float(before.pop(key)) == pytest.approx(float(after.pop(key)), rel=1e-5)
    assert_same(before, after)
    for name in ("before", "after"):  # as Trainer saves under FULL_STATE_DICT
        loaded = loraga.load(PLAIN.base(), tmp_path / f"out.{name}.saved", is_trainable=True)
        assert_same(adapter_state(loaded), end)
    for rank in (0, 1):
        sharded, in_one_process = json.loads((tmp_path / f"out.{rank}.errors").read_text())
        assert sharded.startswith("the model is sharded (FSDP1, DeepSpeed), and no process can start all of it")
        assert in_one_process.startswith("the model is with one process alone (cpu_ram_efficient_loading), and no")
        assert all(
            "loraga.load(base, directory, is_trainable=True)" in message for message in (sharded, in_one_process)
        )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("wrapped", [False, True], ids=["now", "at the start of training"])
def test_two_processes_get_the_start_of_all_their_batches(processes, tmp_path, wrapped):
    port = free_port()
    ranks = [{"rank": rank, "port": port, "output": tmp_path / "out", "wrapped": wrapped} for rank in (0, 1)]
    assert processes.statuses("initialize_trainer", ranks) == [0, 0], processes.output()
    for moment in ("start", "end"):
        assert_same(read(tmp_path / f"out.{moment}.0"), read(tmp_path / f"out.{moment}.1"))
    found = read(tmp_path / "out.start.0")
    assert_moved(found, read(tmp_path / "out.end.0"))
    alone = PLAIN.peft_model(lora_dropout=0.0, r=8)
    start(PLAIN.make(tmp_path, alone), 4)  # two processes with two batches each
    state = adapter_state(alone)
    for key in [key for key in state if "lora_A" in key]:
        A, other = state[key], found[key]
        B, others_B = state[key.replace("lora_A", "lora_B")], found[key.replace("lora_A", "lora_B")]
        assert models.relative_difference(others_B @ other, B @ A) < 1e-2, key
