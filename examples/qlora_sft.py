"""QLoRA with TRL, on a 4-bit base: python examples/qlora_sft.py MODEL DATA.jsonl OUTPUT (rows: prompt, completion)."""

import argparse

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer

import loraga

parser = argparse.ArgumentParser(description=__doc__)
for name in ("model", "data", "output"):
    parser.add_argument(name)
parser.add_argument("--steps", type=int, default=100)
arguments = parser.parse_args()

four_bit = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16 if is_torch_bf16_gpu_available() else torch.float32,
)
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(arguments.model, quantization_config=four_bit),
    args=SFTConfig(arguments.output, max_steps=arguments.steps, learning_rate=1e-3, bf16=is_torch_bf16_gpu_available()),
    train_dataset=load_dataset("json", data_files=arguments.data, split="train"),
    processing_class=AutoTokenizer.from_pretrained(arguments.model),
    peft_config=LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
)
print(loraga.initialize_trainer(trainer))  # the one line
trainer.train()
trainer.save_model(arguments.output)
