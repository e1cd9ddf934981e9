"""A loop of one's own, with accelerate: python examples/custom_loop.py MODEL DATA.jsonl OUTPUT (rows: text)."""

import argparse

import torch
from accelerate import Accelerator
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

import loraga

parser = argparse.ArgumentParser(description=__doc__)
for name in ("model", "data", "output"):
    parser.add_argument(name)
parser.add_argument("--epochs", type=int, default=1)
arguments = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(arguments.model)
texts = load_dataset("json", data_files=arguments.data, split="train")["text"]
collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
loader = DataLoader([tokenizer(text) for text in texts], batch_size=4, shuffle=True, collate_fn=collator)
config = LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules="all-linear")
model = get_peft_model(AutoModelForCausalLM.from_pretrained(arguments.model), config)
print(loraga.initialize(model, loader))  # the one line, before the model is prepared

accelerator = Accelerator()
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
for _ in range(arguments.epochs):
    for batch in loader:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
accelerator.unwrap_model(model).save_pretrained(arguments.output)
