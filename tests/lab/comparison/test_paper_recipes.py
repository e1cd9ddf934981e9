"""The recipes of the paper against a written table of its settings (arXiv 2407.05000)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loraga.lab.arguments import training_arguments
from loraga.lab.comparison.cells import planned
from loraga.lab.comparison.comparison import load_comparison
from loraga.lab.methods import METHODS
from loraga.lab.programs.confined import why_no_lock
from loraga.lab.recipe import meaningless_keys
from loraga.lab.recipe_check import load_recipe
from loraga.lab.tasks import TASKS
from tests.humaneval import needs_lock
from tests.pages import ROOT

FOLDER = ROOT / "recipes" / "paper"
GLUE = {"mnli": "mnli", "sst2": "sst2", "cola": "cola", "qnli": "qnli", "mrpc": "mrpc"}  # section 4.1
LLAMA = {"chat": "wizardlm_mt_bench", "math": "metamath_gsm8k", "code": "code_feedback_humaneval"}  # section 4.2

# What differs from one table to the next: its methods, in its order, and their learning rates.
TABLE_1 = ("full", "lora", "pissa", "rslora", "lora_plus", "dora", "adalora", "lora_ga")  # Tables 1 and 2, rows
ABLATION = ("full", "lora", "gaussian", "stable_output", "gradient", "lora_ga")  # Tables 4 and 6, rows; Table 3
TABLE_7 = ("full", "lora", "pissa", "rslora", "lora_plus", "lora_ga")  # Tables 7 and 8, rows
OWN_RATES = {"dora": 2e-4, "adalora": 5e-4}  # D.1 and D.2
TABLES = {
    **{f"table1_{name}": (task, TABLE_1, 1e-4) for name, task in GLUE.items()},  # D.1
    **{f"table6_{name}": (task, ABLATION, 1e-4) for name, task in GLUE.items()},  # D.1
    **{f"table2_{name}": (task, TABLE_1, 2e-5) for name, task in LLAMA.items()},  # D.2
    **{f"table4_{name}": (task, ABLATION, 2e-5) for name, task in LLAMA.items()},  # D.2
    **{f"table7_{name}": (task, TABLE_7, 1e-5) for name, task in LLAMA.items()},  # caption of Table 7
    **{f"table8_{name}": (task, TABLE_7, 5e-5) for name, task in LLAMA.items()},  # caption of Table 8
}
SEEDS = (0, 1, 2)  # sections 4.1 and 4.2: three

# What all tables have alike: {key: value}, and what it is the product of where the paper gives a product.
ALL = {
    "rank": 8,  # D.1, D.2
    "alpha": 16,  # D.1, D.2
    "target_modules": "all-linear",  # D.1: all but embedding, norms and head, which PEFT leaves out
    "stability": "forward",  # section 3.3: zeta = Theta(sqrt(d_out / r^2))
    "offset": "adapter",  # section 3.4: W_init = W_0 - eta B A, which an offset in the adapter computes
    "weight_decay": 0,  # D.1, D.2
    "warmup_steps": 0.03,  # D.1, D.2: the part of all steps
    "lr_scheduler_type": "cosine",  # D.1, D.2
    "num_train_epochs": 1,  # D.1, D.2
    "dropout": 0,  # none is named
}
OF_T5 = {
    "model": "google-t5/t5-base",  # section 4.1
    "dtype": "float32",  # D.1
    "gamma": 16,  # D.1
    "sequence_length": 128,  # D.1
}
OF_LLAMA = {
    "model": "meta-llama/Llama-2-7b-hf",  # section 4.2
    "dtype": "bfloat16",  # D.2; the adapters are in float32, as PEFT keeps them
    "gamma": 64,  # D.2
    "sequence_length": 1024,  # D.2
    "temperature": 0.8,  # D.2
    "top_p": 0.95,  # D.2
    "samples": 1,  # section 4.2: PASS@1
    "per_device_train_batch_size": 1,  # D.2
    "gradient_accumulation_steps": 32,  # D.2
}
T5_ROWS_A_STEP, T5_ROWS_OF_THE_GRADIENT = 32, 8  # D.1
LLAMA_ROWS_OF_THE_GRADIENT = 32  # D.2: 1 x 32
ROWS = {"wizardlm_mt_bench": 52_000, "metamath_gsm8k": 100_000, "code_feedback_humaneval": 100_000}  # section 4.2
ADAMW = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}  # D.1, D.2
METRICS_OF = {"wizardlm_mt_bench": "mt_bench", "metamath_gsm8k": "gsm8k", "code_feedback_humaneval": "humaneval"}

NAMES = [pytest.param(name, marks=needs_lock if name.endswith("code") else ()) for name in TABLES]


def cells_of(name):
    return planned(load_comparison(FOLDER / f"{name}.yaml"), lambda cell: None, lambda cell: False).cells


def expected_cells(name):
    """(method, rank, learning rate, seed) of each cell."""
    _, methods, rate = TABLES[name]
    ranks = {method: (8,) if METHODS[method].adapter else (None,) for method in methods}
    if name.startswith("table2"):
        ranks["lora_ga"] = (8, 32, 128)  # Table 2, the last two rows
    return {
        (method, rank, OWN_RATES.get(method, rate), seed)
        for method in methods
        for rank in ranks[method]
        for seed in SEEDS
    }


def expected_keys(name, cell):
    """The paper's value of each key of a cell that means something with its method."""
    task, _, _ = TABLES[name]
    keys = ALL | (OF_T5 if task in GLUE.values() else OF_LLAMA) | {"task": task}
    keys |= {"rank": cell.rank} if cell.rank else {}
    if cell.variant.method == "pissa" and "Llama" in keys["model"]:
        keys["dtype"] = "float32"  # PEFT subtracts its start from the weights, which bfloat16 would round away
    return {key: value for key, value in keys.items() if key not in meaningless_keys(cell.variant.method)}


@pytest.mark.parametrize("name", NAMES)
def test_a_table_has_its_methods_ranks_learning_rates_and_seeds(name):
    found = [(cell.variant.method, cell.rank, cell.learning_rate, cell.seed) for cell in cells_of(name)]
    assert len(found) == len(set(found))
    assert set(found) == expected_cells(name)
    assert list(dict.fromkeys(method for method, *_ in found)) == list(TABLES[name][1])


@pytest.mark.parametrize("name", NAMES)
def test_a_tables_settings_are_those_of_the_paper(name):
    task = TABLES[name][0]
    seen = set()
    for cell in cells_of(name):
        recipe = cell.recipe
        expected = expected_keys(name, cell)
        assert {key: getattr(recipe, key) for key in expected} == expected, cell.name
        rows_a_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
        sampled = recipe.per_device_train_batch_size * recipe.gradient_batches
        if task in GLUE.values():
            assert rows_a_step == T5_ROWS_A_STEP
            assert sampled == T5_ROWS_OF_THE_GRADIENT or not METHODS[recipe.method].uses_batches
            assert recipe.metric == "label_word"  # section 4.1: normalised probability of the label's token
            assert recipe.rows is None
        else:
            assert rows_a_step == 32
            assert sampled == LLAMA_ROWS_OF_THE_GRADIENT or not METHODS[recipe.method].uses_batches
            assert (recipe.rows, recipe.metric) == (ROWS[task], METRICS_OF[task])
            assert (recipe.trainer.get("bf16", False), recipe.dtype) in {(False, "bfloat16"), (True, "float32")}
        assert (recipe.held_out, recipe.held_out_split) == (
            TASKS[task].keys["held_out"],
            TASKS[task].keys["held_out_split"],
        )
        assert recipe.held_out_rows is None
        assert recipe.validation_rows is None  # the paper sets none aside
        if recipe.method not in seen and name.endswith(("cola", "chat")):
            seen.add(recipe.method)
            without_mixing = {key: value for key, value in recipe.trainer.items() if key != "bf16"}
            arguments = training_arguments(replace(recipe, trainer=without_mixing))
            assert {key: getattr(arguments, key) for key in ADAMW} == ADAMW
            assert arguments.optim.value.startswith("adamw")


@pytest.mark.parametrize("name", ["table5_t5_base", pytest.param("table5_llama2_7b")])
def test_table_5_measures_lora_lora_ga_and_full_fine_tuning_with_the_settings_of_the_others(name):
    other = "table1_cola" if name == "table5_t5_base" else "table2_code"
    if other == "table2_code" and why_no_lock():
        other = "table2_math"
    free = {"max_steps", "num_train_epochs", "output_dir", "seed", "held_out_rows", "metric", "temperature", "top_p"}
    free |= {"run_generated_code"} | set(TASKS["code_feedback_humaneval"].keys if "llama" in name else ()) | {"task"}
    theirs = {(cell.variant.method, cell.rank): vars(cell.recipe) for cell in cells_of(other)}
    cells = cells_of(name)
    assert [cell.variant.method for cell in cells] == ["lora", "lora_ga", "full"]
    for cell in cells:
        known = theirs[cell.variant.method, cell.rank]
        assert {key: value for key, value in vars(cell.recipe).items() if key not in free} == {
            key: value for key, value in known.items() if key not in free
        }
        assert cell.recipe.sequence_length == known["sequence_length"]


def test_figure_5_inspects_the_gradient_that_table_1_starts_from():
    shown = vars(load_recipe(FOLDER / "figure5.yaml"))
    (started,) = [vars(c.recipe) for c in cells_of("table1_cola") if c.variant.method == "lora_ga" and c.seed == 0]
    free = {"output_dir", "learning_rate", "gradient_accumulation_steps"}
    assert {key: value for key, value in shown.items() if key not in free} == {
        key: value for key, value in started.items() if key not in free
    }


def test_every_file_is_named_by_the_paper():
    assert {path.stem for path in FOLDER.glob("*")} == {*TABLES, "table5_t5_base", "table5_llama2_7b", "figure5"}


def test_pefts_recipe_has_the_settings_of_its_method_comparison():
    """huggingface/peft, method_comparison/MetaMathQA: default_training_params.json, README.md, experiments/lora."""
    cells = planned(load_comparison(ROOT / "recipes" / "peft_metamathqa.yaml"), lambda cell: None, lambda cell: False)
    by_method = {cell.variant.method: cell for cell in cells.cells}
    for cell in cells.cells:
        recipe, trainer = cell.recipe, cell.recipe.trainer
        assert (recipe.model, recipe.seed) == ("meta-llama/Llama-3.2-3B", 0)
        assert recipe.dtype == "bfloat16" or METHODS[recipe.method].changes_base
        assert (recipe.max_steps, recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps) == (
            5000,
            4,
            1,
        )
        assert (recipe.sequence_length, recipe.weight_decay, recipe.lr_scheduler_type) == (768, 0.1, "cosine")
        assert (recipe.warmup_steps, trainer["max_grad_norm"]) == (0.1, 1.0)
        assert (recipe.temperature, recipe.max_new_tokens, recipe.validation_rows) == (0, 300, 50)
        assert (recipe.metric, recipe.held_out, recipe.held_out_rows) == ("gsm8k", "openai/gsm8k", None)
        assert recipe.prompt == "Question: {question} Think step by step.\nAnswer:"
        assert cell.learning_rate == (1e-5 if recipe.method == "full" else 1e-4)
    assert (by_method["lora"].rank, by_method["lora"].recipe.alpha) == (32, 64)
    assert (by_method["rslora"].rank, by_method["rslora"].recipe.alpha) == (64, 64)
    assert by_method["lora"].recipe.target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_says_what_it_is_first(path: Path):
    assert path.read_text().startswith("# ")
