"""Preferences with TRL: python examples/dpo.py MODEL DATA.jsonl OUTPUT (rows: prompt, chosen, rejected)."""

import argparse

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_torch_bf16_gpu_available
from trl import DPOConfig, DPOTrainer

import loraga

parser = argparse.ArgumentParser(description=__doc__)
for name in ("model", "data", "output"):
    parser.add_argument(name)
parser.add_argument("--steps", type=int, default=100)
arguments = parser.parse_args()

trainer = DPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(arguments.model),
    args=DPOConfig(arguments.output, max_steps=arguments.steps, learning_rate=1e-4, bf16=is_torch_bf16_gpu_available()),
    train_dataset=load_dataset("json", data_files=arguments.data, split="train"),
    processing_class=AutoTokenizer.from_pretrained(arguments.model),
    peft_config=LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
)
print(loraga.initialize_trainer(trainer))  # the one line; the reference stays the model as it was loaded
trainer.train()
trainer.save_model(arguments.output)
