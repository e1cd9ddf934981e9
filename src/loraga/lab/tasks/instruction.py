"""The prompt that models without a chat template are given an instruction in: Alpaca's (Taori et al. 2023)."""

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
