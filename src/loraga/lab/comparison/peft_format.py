"""PEFT's format of a result: what its method_comparison pages read (huggingface/peft, method_comparison/processing.py).

That suite runs each method once on one GPU and keeps more figures of memory than a run of ours does. What was not
measured is filled in so that its pages can read it, and named in `run_info.loraga.filled_in`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loraga import __version__

from ..methods import METHODS

if TYPE_CHECKING:
    from .results import Results, Run

PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")
STATUS = {"done": "success", "diverged": "failed", "failed": "failed"}
PEFT_ACCURACY = "peft_rule"  # among the scores of metric gsm8k: by PEFT's own rule, which differs from ours
BYTES = 4  # of a saved parameter: adapters are kept in float32


def peft_records(results: Results, created_at: str) -> dict[str, dict[str, Any]]:
    """The results as PEFT's suite keeps them.

    Args:
        results: of the comparison.
        created_at: date and time, as in "2026-01-31T12:00:00+00:00".

    Returns:
        {name of the file: its content}, one for each run that ended; empty where no answer was judged, since the format
        has no result without an accuracy.
    """
    found: dict[str, dict[str, Any]] = {}
    for run in results.runs:
        if run.status == "missing" or (run.status == "done" and (run.test is None or run.test.score is None)):
            continue
        if results.metric != "none":
            record = peft_record(results, run, created_at)
            found[_unused(record["run_info"]["experiment_name"].replace("/", "--"), found)] = record
    return found


def peft_record(results: Results, run: Run, created_at: str) -> dict[str, Any]:
    """One run in that format.

    Args:
        results: of the comparison.
        run: done, diverged or failed.
        created_at: date and time.

    Returns:
        JSON values.
    """
    seconds = {name: value for name, value in run.seconds.items() if value is not None}
    peft_config = _peft_config(run)
    kind = "full-finetuning" if peft_config is None else peft_config["peft_type"].lower()
    record = {
        "run_info": {
            "created_at": created_at,
            "total_time": sum(seconds.get(part, 0.0) for part in ("start", "training", "evaluation")),
            "experiment_name": f"{kind}/{_experiment(results, run)}",
            "peft_branch": "release",
            "train_config": _train_config(results, run),
            "peft_config": peft_config,
            "error_msg": run.problem or "",
            "loraga": _ours(run),
        },
        "train_info": {
            "accelerator_memory_reserved_avg": run.peak_memory or 0,
            "accelerator_memory_max": run.peak_memory or 0,
            "accelerator_memory_reserved_99th": run.peak_memory or 0,
            "train_time": seconds.get("training", 0.0),
            "init_time": seconds.get("start", 0.0),
            "file_size": BYTES * _saved_parameters(run),
            "num_trainable_params": run.trainable_parameters or 0,
            "status": STATUS[run.status],
            "metrics": _metrics(run),
        },
        "meta_info": {
            "model_info": {"sha": None, "created_at": None},
            "dataset_info": {},
            "package_info": {f"{name}-version": results.versions.get(name) for name in PACKAGES},
            "system_info": dict(results.machine),
        },
    }
    return _finite(record)


def _experiment(results: Results, run: Run) -> str:
    parts = [results.model.rsplit("/", 1)[-1], run.variant]
    parts += [] if run.rank is None else [f"rank{run.rank}"]
    parts += ["lr_auto" if run.is_auto else f"lr_{run.learning_rate:g}" if run.learning_rate else "lr_unknown"]
    return "-".join(re.sub(r"[^A-Za-z0-9.+_]+", "-", part).strip("-") for part in [*parts, f"seed{run.seed}"])


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    number, file = 1, f"{name}.json"
    while file in taken:
        number += 1
        file = f"{name}-{number}.json"
    return file


def _train_config(results: Results, run: Run) -> dict[str, Any]:
    settings = run.settings
    return {
        "model_id": results.model,
        "dtype": settings.get("dtype"),
        "max_seq_length": settings.get("sequence_length"),
        "batch_size": settings.get("per_device_train_batch_size"),
        "batch_size_eval": settings.get("per_device_eval_batch_size"),
        "max_steps": run.steps,
        "seed": run.seed,
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {"lr": run.learning_rate, "weight_decay": settings.get("weight_decay")},
        "lr_scheduler": settings.get("lr_scheduler_type"),
    }


def _peft_config(run: Run) -> dict[str, Any] | None:
    method = METHODS[run.method]
    if not method.adapter:
        return None
    settings = run.settings
    return {
        "peft_type": "ADALORA" if method.peft == "adalora" else "LORA",
        "task_type": "CAUSAL_LM",
        "r": run.rank,
        "lora_alpha": settings.get("alpha"),
        "lora_dropout": settings.get("dropout"),
        "target_modules": settings.get("target_modules"),
        "use_rslora": method.use_rslora,
        "use_dora": method.peft == "dora",
    }


def _metrics(run: Run) -> list[dict[str, Any]]:
    if run.test is None:
        return []
    last = {"step": run.steps, "train loss": run.train_loss, "train samples": _samples(run)}
    accuracy = run.test.scores.get(PEFT_ACCURACY, run.test.score)
    validation = None if run.validation is None else run.validation.score
    return [
        {**last, "valid accuracy": validation},
        {**last, "test accuracy": accuracy, "train total tokens": run.tokens or 0},
    ]


def _samples(run: Run) -> int:
    """Training rows that were seen: those of a step, times the steps."""
    size = run.settings.get("per_device_train_batch_size", 0) * run.settings.get("gradient_accumulation_steps", 1)
    return (run.steps or 0) * size


def _saved_parameters(run: Run) -> int:
    """The parameters of the saved adapter, which is twice as large where it holds the start that is subtracted."""
    method = METHODS[run.method]
    is_subtracted = method.scheme is not None and not method.mirrored and run.settings.get("offset") == "adapter"
    return (2 if is_subtracted or method.changes_base else 1) * (run.trainable_parameters or 0)


def _ours(run: Run) -> dict[str, Any]:
    memory = "the peak, since no more was measured" if run.peak_memory else "0, since it was not measured"
    return {
        "version": __version__,
        "variant": run.variant,
        "method": run.method,
        "is_auto": run.is_auto,
        "score": None if run.test is None else run.test.score,
        "scores": {} if run.test is None else dict(run.test.scores),
        "test_loss": None if run.test is None else run.test.loss,
        "settings": dict(run.settings),
        "filled_in": {
            "run_info.created_at": "when the report was written",
            "run_info.total_time": "start, training and evaluation together",
            "train_info.accelerator_memory_max": "of the whole process; 0 where it was not measured",
            "train_info.accelerator_memory_reserved_avg": memory,
            "train_info.accelerator_memory_reserved_99th": memory,
            "train_info.file_size": f"{BYTES} bytes a saved parameter",
            "train_info.metrics.train samples": "steps times the rows of a step",
        },
    }


def _finite(value: Any) -> Any:
    """The same with None where a number is not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
