"""The tasks: each with its data, prompt, target and metric; one module a kind and one line a task."""

from __future__ import annotations

from .chat import WIZARDLM_MT_BENCH
from .classification import COLA, MNLI, MRPC, QNLI, SST2
from .code import CODE_FEEDBACK_HUMANEVAL
from .math import GSM8K, METAMATH_GSM8K, PEFT_METAMATH
from .offline import CHAIN_SUM, SUM_OR_SIGN
from .task import Task

TASKS = {
    "mnli": MNLI,
    "sst2": SST2,
    "cola": COLA,
    "qnli": QNLI,
    "mrpc": MRPC,
    "metamath_gsm8k": METAMATH_GSM8K,
    "peft_metamath": PEFT_METAMATH,
    "gsm8k": GSM8K,
    "code_feedback_humaneval": CODE_FEEDBACK_HUMANEVAL,
    "wizardlm_mt_bench": WIZARDLM_MT_BENCH,
    "chain_sum": CHAIN_SUM,
    "sum_or_sign": SUM_OR_SIGN,
}

__all__ = ["TASKS", "Task"]
