"""Classification with Trainer: python examples/classification.py MODEL DATA.jsonl OUTPUT (rows: text, label from 0)."""

import argparse

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import loraga

parser = argparse.ArgumentParser(description=__doc__)
for name in ("model", "data", "output"):
    parser.add_argument(name)
parser.add_argument("--steps", type=int, default=100)
arguments = parser.parse_args()

rows = load_dataset("json", data_files=arguments.data, split="train")
tokenizer = AutoTokenizer.from_pretrained(arguments.model)
base = AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=max(rows["label"]) + 1)
# the head is new: it is trained in full, and saved with the adapter
config = LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules="all-linear", task_type="SEQ_CLS")
trainer = Trainer(
    model=get_peft_model(base, config),
    args=TrainingArguments(arguments.output, max_steps=arguments.steps, learning_rate=1e-3),
    train_dataset=rows.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text"),
    processing_class=tokenizer,
)
print(loraga.initialize_trainer(trainer))  # the one line
trainer.train()
trainer.save_model(arguments.output)
