"""Rewards with TRL: python examples/grpo.py MODEL DATA.jsonl OUTPUT (rows: prompt, answer, which is looked for)."""

import argparse
import difflib

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig, GRPOTrainer

import loraga

parser = argparse.ArgumentParser(description=__doc__)
for name in ("model", "data", "output"):
    parser.add_argument(name)
parser.add_argument("--steps", type=int, default=100)
arguments = parser.parse_args()
has_bfloat16 = is_torch_bf16_gpu_available()


def likeness(completions, answer, **_):
    """A reward that every letter changes."""
    return [difflib.SequenceMatcher(None, *pair).ratio() for pair in zip(completions, answer, strict=True)]


trainer = GRPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(arguments.model),
    args=GRPOConfig(
        arguments.output, max_steps=arguments.steps, learning_rate=1e-4, max_completion_length=32, bf16=has_bfloat16
    ),
    train_dataset=load_dataset("json", data_files=arguments.data, split="train"),
    processing_class=AutoTokenizer.from_pretrained(arguments.model),
    peft_config=LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
    reward_funcs=likeness,
)
print(loraga.initialize_trainer(trainer))  # the one line; it generates the completions of the first steps
trainer.train()
trainer.save_model(arguments.output)
