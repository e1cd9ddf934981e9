"""TRL: a reference made from the policy's own adapter, DPO and SFT on an initialised model."""

from __future__ import annotations

import inspect

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import selective_log_softmax, use_adapter

from tests.integration.common import (
    adapter_state,
    assert_moved,
    assert_same,
    base,
    eval_logits,
    read,
    started,
    train_logits,
)
from tests.integration.trainers import CHECKPOINTING, reference_log_probabilities, text
from tests.models import batches, relative_difference, train


def settings(kind, output, **extra):
    return kind(
        output_dir=str(output),
        per_device_train_batch_size=2,
        max_steps=3,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        dataloader_pin_memory=False,
        **CHECKPOINTING,
        **extra,
    )


def make_reference(model):
    """TRL's own lines (DPOTrainer.__init__; GRPO, KTO and RLOO have the same)."""
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)


@pytest.mark.parametrize("steps", [0, 3], ids=["at the start", "after training"])
def test_a_reference_is_the_policy_bit_for_bit_and_stays(steps):
    model = started()
    if steps:
        train(model, batches("Llama"), steps)
    policy, in_training = eval_logits(model), train_logits(model)
    if not steps:
        assert torch.equal(policy, eval_logits(base()))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    make_reference(model)
    assert torch.equal(eval_logits(model), policy)
    with use_adapter(model, "ref"):
        assert torch.equal(eval_logits(model), policy)
        assert torch.equal(train_logits(model), in_training)
    assert torch.equal(eval_logits(model), policy)
    assert torch.equal(train_logits(model), in_training)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable
    train(model, batches("Llama"), 3)
    assert relative_difference(eval_logits(model), policy) > 1e-3
    with use_adapter(model, "ref"):
        assert torch.equal(eval_logits(model), policy)
    with use_adapter(model, None):
        assert torch.equal(eval_logits(model), eval_logits(base()))


@pytest.mark.parametrize("steps", [0, 3], ids=["at the start", "after training"])
def test_dpo_trains_the_policy_against_an_unmoved_reference(tokenizer, tmp_path, steps):
    model = started()
    if steps:
        train(model, batches("Llama"), steps)
    before = eval_logits(model)
    pairs = Dataset.from_list(
        [{"prompt": text(n, 3), "chosen": " " + text(n + 1, 4), "rejected": " " + text(n + 2, 3)} for n in range(6)]
    )
    trainer = DPOTrainer(
        model=model, args=settings(DPOConfig, tmp_path), train_dataset=pairs, processing_class=tokenizer
    )
    assert trainer.model is model
    assert set(model.peft_config) == {"default", "ref"}
    inputs = next(iter(trainer.get_train_dataloader()))
    policy = log_probabilities(trainer, inputs, "default")
    reference = reference_log_probabilities(trainer, model, inputs)
    assert all(torch.equal(*pair) for pair in zip(reference, policy, strict=True))
    start = adapter_state(model)
    trainer.train()
    model.eval()
    assert all(
        torch.equal(*p) for p in zip(reference_log_probabilities(trainer, model, inputs), reference, strict=True)
    )
    moved = log_probabilities(trainer, inputs, "default")
    assert not any(torch.equal(*pair) for pair in zip(moved, policy, strict=True))
    assert_moved(start, adapter_state(model))
    with use_adapter(model, "ref"):
        assert torch.equal(eval_logits(model), before)
    with model.disable_adapter():
        assert torch.equal(eval_logits(model), eval_logits(base()))


def log_probabilities(trainer, inputs, adapter_name):
    """The policy's, by the computation that the trainer uses for the reference: its "ref" is the policy here."""
    model = trainer.model
    model.eval()
    ids, mask = inputs["input_ids"], inputs["completion_mask"]
    labels = ids.masked_fill(mask == 0, -100)
    extra = {key: value for key, value in inputs.items() if key not in ("input_ids", "completion_mask")}
    assert model.active_adapter == adapter_name
    if "model" not in inspect.signature(trainer.compute_ref_log_probs).parameters:  # TRL 1.0, from whole logits
        with torch.no_grad():
            outputs = model(input_ids=ids, attention_mask=extra["attention_mask"], use_cache=False)
        of_tokens = selective_log_softmax(outputs.logits[:, :-1].contiguous(), ids[:, 1:].contiguous())
        return of_tokens.masked_fill(mask[:, 1:] == 0, 0.0).sum(dim=1).chunk(2, dim=0)
    with torch.no_grad():
        outputs = model(
            input_ids=ids, attention_mask=extra["attention_mask"], use_cache=False, labels=labels, fused_lm_head=True
        )
    return outputs.log_probs[:, -mask[..., 1:].size(1) :].sum(dim=1).chunk(2, dim=0)


def test_sft_trains_and_its_adapter_loads_in_plain_peft(tokenizer, processes, tmp_path):
    model = started()
    start = adapter_state(model)
    rows = Dataset.from_list([{"prompt": text(n, 4), "completion": " " + text(n + 1, 5)} for n in range(6)])
    trainer = SFTTrainer(
        model=model, args=settings(SFTConfig, tmp_path / "run"), train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert_moved(start, adapter_state(model))
    assert_same(
        {key: value for key, value in start.items() if "lora_offset" in key},
        {key: value for key, value in adapter_state(model).items() if "lora_offset" in key},
    )
    processes.run("plain_peft", without_loraga=True, directories=[tmp_path / "saved"], output=tmp_path / "logits")
    assert relative_difference(read(tmp_path / "logits")[str(tmp_path / "saved")], eval_logits(model)) <= 1e-5
