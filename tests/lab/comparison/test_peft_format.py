import json
import math
from dataclasses import replace
from datetime import datetime

import pytest

from loraga.lab.comparison.peft_format import PEFT_ACCURACY, peft_record, peft_records
from tests.lab.comparison.synthetic import synthetic_results

RESULTS = synthetic_results(rows=12, steps=12)
WHEN = "2026-01-31T12:00:00+00:00"
RECORDS = peft_records(RESULTS, WHEN)

# What processing.py of PEFT's method_comparison reads of a result, and the type that it turns it into.
PATHS = {
    "run_info.created_at": datetime.fromisoformat,
    "run_info.total_time": float,
    "run_info.experiment_name": str,
    "run_info.peft_branch": str,
    "run_info.train_config.model_id": str,
    "run_info.peft_config.peft_type": str,
    "train_info.accelerator_memory_reserved_avg": int,
    "train_info.accelerator_memory_max": int,
    "train_info.accelerator_memory_reserved_99th": int,
    "train_info.train_time": float,
    "train_info.file_size": int,
    "train_info.num_trainable_params": int,
    "train_info.status": str,
    "train_info.metrics": list,
    "train_info.metrics.-1.test accuracy": float,
    "train_info.metrics.-1.train loss": float,
    "train_info.metrics.-1.train samples": int,
    "train_info.metrics.-1.train total tokens": int,
    "meta_info.package_info": dict,
    "meta_info.package_info.transformers-version": str,
    "meta_info.package_info.peft-version": str,
    "meta_info.package_info.datasets-version": str,
    "meta_info.package_info.torch-version": str,
    "meta_info.package_info.bitsandbytes-version": (lambda value: value),  # None where it is not installed
    "meta_info.system_info": dict,
    "run_info.train_config": dict,
}


def at(record, path):
    for key in path.split("."):
        record = record[int(key)] if key == "-1" else record[key]
    return record


def record_of(variant, status="done", rank=8):
    run = next(run for run in RESULTS.runs if (run.variant, run.status, run.rank) == (variant, status, rank))
    return peft_record(RESULTS, run, WHEN), run


@pytest.mark.parametrize("path", PATHS)
def test_every_run_has_what_their_pages_read(path):
    for record in RECORDS.values():
        if record["train_info"]["status"] == "success" and record["run_info"]["peft_config"] is not None:
            PATHS[path](at(record, path))


def test_there_are_26_paths():
    assert len(PATHS) == 26


def test_there_is_a_file_for_each_run_that_ended():
    ended = [run for run in RESULTS.runs if run.status != "missing"]
    assert len(RECORDS) == len(ended)
    assert "lora--smollm2-135m-instruct-LoRA-rank8-lr_0.0005-seed0.json" in RECORDS
    assert "lora--smollm2-135m-instruct-LoRA-GA-gamma-4096-rank32-lr_auto-seed2.json" in RECORDS
    assert "full-finetuning--smollm2-135m-instruct-full-fine-tuning-lr_0.0001-seed1.json" in RECORDS
    json.dumps(RECORDS, allow_nan=False)


def test_full_fine_tuning_has_no_config_of_an_adapter_and_adalora_its_own_type():
    assert record_of("full fine-tuning", rank=None)[0]["run_info"]["peft_config"] is None
    assert record_of("AdaLoRA")[0]["run_info"]["peft_config"]["peft_type"] == "ADALORA"
    assert record_of("rsLoRA")[0]["run_info"]["peft_config"] == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "use_rslora": True,
        "use_dora": False,
    }


def test_figures_are_the_runs():
    record, run = record_of("LoRA")
    assert record["run_info"]["total_time"] == pytest.approx(1.5 + 2.1 * 12 + 20.0)
    assert record["train_info"]["init_time"] == 1.5
    assert record["train_info"]["metrics"][-1] == {
        "step": 12,
        "train loss": run.train_loss,
        "train samples": 96,
        "test accuracy": run.test.score,
        "train total tokens": run.tokens,
    }
    assert record["run_info"]["loraga"]["variant"] == "LoRA"
    assert record["run_info"]["train_config"]["optimizer_kwargs"]["lr"] == 5e-4


def test_an_adapter_that_holds_its_start_is_twice_as_large():
    assert record_of("LoRA")[0]["train_info"]["file_size"] == 4 * 8 * 610_560
    assert record_of("LoRA-GA, gamma 4096")[0]["train_info"]["file_size"] == 2 * 4 * 8 * 610_560
    assert record_of("PiSSA")[0]["train_info"]["file_size"] == 2 * 4 * 8 * 610_560


def test_a_run_that_failed_is_one_that_their_pages_skip():
    record, _ = record_of("DoRA", "failed")
    assert record["train_info"]["status"] == "failed"
    assert record["run_info"]["error_msg"] == "no space left on device"
    assert record_of("Gaussian", "diverged")[0]["train_info"]["status"] == "failed"


def test_the_accuracy_by_their_own_rule_is_taken_where_it_was_measured():
    _, run = record_of("LoRA")
    both = replace(run, test=replace(run.test, score=0.75, scores={PEFT_ACCURACY: 0.5}))
    record = peft_record(RESULTS, both, WHEN)
    assert record["train_info"]["metrics"][-1]["test accuracy"] == 0.5
    assert record["run_info"]["loraga"]["score"] == 0.75


def test_what_was_not_measured_is_filled_in_and_named():
    _, run = record_of("LoRA")
    bare = replace(run, peak_memory=None, seconds={}, tokens=None, settings={}, train_loss=math.nan)
    record = peft_record(RESULTS, bare, WHEN)
    for path in PATHS:
        if "train loss" not in path:
            PATHS[path](at(record, path))
    assert record["train_info"]["metrics"][-1]["train loss"] is None
    assert "train_info.accelerator_memory_reserved_avg" in record["run_info"]["loraga"]["filled_in"]


def test_without_an_accuracy_there_is_no_file():
    assert peft_records(replace(RESULTS, metric="none"), WHEN) == {}
    unmeasured = tuple(replace(run, test=None) for run in RESULTS.runs if run.status == "done")
    assert peft_records(replace(RESULTS, runs=unmeasured), WHEN) == {}


def test_variants_whose_names_make_the_same_file_have_one_each():
    _, run = record_of("LoRA")
    results = replace(RESULTS, runs=(run, replace(run, variant="LoRA?"), replace(run, variant="LoRA/")))
    names = list(peft_records(results, WHEN))
    assert len(names) == 3
    assert all("/" not in name for name in names)
