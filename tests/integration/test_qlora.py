"""TRL's QLoRA script as it stands, with the one line: NF4, factors that TRL casts to bfloat16, checkpointing."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

import loraga
from tests.integration.common import adapter_state, assert_moved, assert_same, train_logits
from tests.integration.trainers import text
from tests.models import batches, relative_difference
from tests.quantised import base_bytes

STEPS = 4


@pytest.fixture
def base(directory):
    """Makes the base as a QLoRA script does."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )

    def make():
        model = AutoModelForCausalLM.from_pretrained(directory, quantization_config=config, device_map={"": "cpu"})
        return prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})

    return make


def script(base, tokenizer, output, **settings):
    """The script, up to `trainer.train()`; gives the trainer."""
    lora = LoraConfig(
        r=2, lora_alpha=4, use_rslora=True, target_modules="all-linear", lora_dropout=0.05, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = get_peft_model(base, lora)
    loraga.initialize(model, batches("Llama"), progress=False)  # the one line
    rows = Dataset.from_list([{"prompt": text(n, 4), "completion": " " + text(n + 1, 5)} for n in range(8)])
    arguments = SFTConfig(
        output_dir=str(output),
        per_device_train_batch_size=2,
        max_steps=STEPS,
        save_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": False},
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        **settings,
    )
    return SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("bf16", [False, True], ids=["bfloat16 factors", "bfloat16 factors under autocast"])
def test_a_qlora_script_of_trls_works_as_it_stands(base, tokenizer, tmp_path, bf16):
    function = train_logits(base())
    trainer = script(base(), tokenizer, tmp_path, bf16=bf16)
    model = trainer.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 28
    assert {parameter.dtype for parameter in trained} == {torch.bfloat16}
    assert torch.equal(train_logits(model), function)
    with model.disable_adapter():
        assert torch.equal(train_logits(model), function)
    before, start = base_bytes(model), adapter_state(model)
    trainer.train()
    assert base_bytes(model) == before
    after = adapter_state(model)
    assert_moved(start, after)
    offsets = [key for key in start if "lora_offset" in key]
    assert len(offsets) == 28
    assert_same({key: start[key] for key in offsets}, {key: after[key] for key in offsets})
    without_dropout(model)
    logits = train_logits(model)
    assert relative_difference(logits, function) > 1e-3

    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    loaded = [PeftModel.from_pretrained(base(), str(checkpoint)), loraga.load(base(), checkpoint)]
    for each in loaded:  # PEFT loads factors in float32, and so computes without the rounding of bfloat16 products
        without_dropout(each)
        assert relative_difference(train_logits(each), logits) < 2**-7
    if bf16:  # Trainer's autocast stays on its model
        return
    for tensor in (*trained, *(buffer for name, buffer in model.named_buffers() if "lora_offset" in name)):
        tensor.data = tensor.data.bfloat16().float()  # the same values, from which products are now made in float32
    for each in loaded:
        assert relative_difference(train_logits(each), train_logits(model)) < 1e-5


def test_a_resumed_qlora_run_ends_where_the_uninterrupted_one_does(base, tokenizer, tmp_path):
    uninterrupted = script(base(), tokenizer, tmp_path / "whole", bf16=False)
    uninterrupted.train()
    resumed = script(base(), tokenizer, tmp_path / "resumed", bf16=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    trained = [name for name, parameter in resumed.model.named_parameters() if parameter.requires_grad]
    for name in trained:
        found, expected = resumed.model.get_parameter(name), uninterrupted.model.get_parameter(name)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), name
    assert torch.equal(train_logits(resumed.model), train_logits(uninterrupted.model))


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
