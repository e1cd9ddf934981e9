"""What a run takes, against what was measured, what Trainer counts, and what the paper published."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraga.lab.comparison.estimate import (
    OF_THE_PROCESS,
    Part,
    RowLengths,
    cost_of,
    lengths_of,
    limits_of,
    most,
    steps_of,
    trained_parameters,
)
from loraga.lab.methods import METHODS
from loraga.lab.model_shape import shape_of
from loraga.lab.preparation import prepare
from loraga.lab.smollm2 import NAME
from loraga.lab.starts import start, trainable_parameters
from tests.lab.tasks.test_tasks import console, resolved

SHORT = {"rows": 20, "held_out_rows": 4, "validation_rows": 3}


def recipe_for(model, **keys):
    keys = {"rank": 4, "sequence_length": 128, **keys}
    if keys.get("method") == "full":
        del keys["rank"]
    return resolved(model=str(model), task="chain_sum", **SHORT, **keys)


def rows_for(recipe, **counts):
    counts = {"train": 20, "validation": 3, "held_out": 4, **counts}
    return RowLengths(*(limits_of(recipe, counts[part]) for part in ("train", "validation", "held_out")))


@pytest.mark.parametrize("method", METHODS)
def test_the_trained_parameters_are_those_of_the_started_model(method, tiny_folder):
    recipe = recipe_for(tiny_folder, method=method, learning_rate=1e-3)
    prepared = prepare(recipe, console())
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    started = start(model, recipe, prepared.data_for(model).micro_batches(recipe, 0, 4)).model
    counted = trained_parameters(recipe, shape_of(recipe))
    if method == "eva":  # the ranks move between layers, of which each rank is of another size
        assert counted == pytest.approx(trainable_parameters(started), rel=0.3)
    else:
        assert counted == trainable_parameters(started)


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "steps"),
    [(20, 8, 1, 1, 3), (20, 8, 2, 1, 2), (20, 4, 5, 3, 3), (3, 8, 4, 1, 1), (20, 8, 1, 0.5, 2), (20, 8, 4, 2, 2)],
)
def test_the_steps_are_those_that_trainer_counts(rows, batch, accumulation, epochs, steps, tiny_folder):
    keys = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    recipe = recipe_for(tiny_folder, num_train_epochs=float(epochs), **keys)
    assert steps_of(recipe, rows) == steps
    assert steps_of(recipe_for(tiny_folder, max_steps=7, **keys), rows) == 7


def test_the_tokens_of_rows_are_those_of_their_padded_batches(tiny_folder):
    recipe = recipe_for(tiny_folder)
    prepared = prepare(recipe, console())
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    collate = prepared.data_for(model).collate
    batches = [collate(prepared.train[at : at + 8]) for at in range(0, 20, 8)]
    found = lengths_of(prepared.train, 8, is_encoder_decoder=False)
    assert found.rows * found.inputs == pytest.approx(sum(batch["input_ids"].numel() for batch in batches))
    assert found.rows * found.targets == pytest.approx(sum(batch["labels"].numel() for batch in batches))
    assert found.is_counted
    assert lengths_of((), 8, is_encoder_decoder=False) is None


def test_the_operations_are_those_that_torch_counts(tiny_folder):
    from torch.utils.flop_counter import FlopCounterMode

    model = AutoModelForCausalLM.from_pretrained(tiny_folder).requires_grad_(True)
    ids = torch.zeros(8, 50, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    recipe = recipe_for(tiny_folder, method="full", learning_rate=1e-3, max_steps=1)
    cost = cost_of(recipe, shape_of(recipe), RowLengths(Part(8, 50, 50, 50, True), None, None))
    assert cost.training == pytest.approx(counter.get_total_flops(), rel=0.1)  # without attention's own products
    frozen = cost_of(
        recipe_for(tiny_folder, method="lora", learning_rate=1e-3, max_steps=1),
        shape_of(recipe),
        RowLengths(Part(8, 50, 50, 50, True), None, None),
    )
    assert frozen.training == pytest.approx(cost.training * 2 / 3)


def test_a_start_a_suggested_rate_answers_and_checkpointing_cost_more(tiny_folder):
    def cost(**keys):
        recipe = recipe_for(tiny_folder, learning_rate=keys.pop("learning_rate", 1e-3), max_steps=2, **keys)
        return cost_of(recipe, shape_of(recipe), rows_for(recipe))

    plain = cost(method="lora")
    assert cost(method="lora_ga").training > plain.training
    assert cost(method="lora", learning_rate="auto").training > plain.training
    assert cost(method="lora", gradient_checkpointing=True).training == pytest.approx(1.5 * plain.training)
    assert cost(method="lora", gradient_checkpointing=True).memory < plain.memory
    assert plain.generation > 0 == cost(method="lora", metric="none").generation
    assert cost(method="lora", samples=3, temperature=1.0).generation == pytest.approx(3 * plain.generation)
    assert cost(method="lora", validation_metric=True).generation == pytest.approx(7 / 4 * plain.generation)
    assert cost(method="full").kept == 0 < plain.kept
    assert cost(method="lora_ga").kept == 2 * plain.kept == 2 * cost(method="lora_ga", offset="none").kept


@pytest.mark.parametrize(
    ("save", "limit", "checkpoints"), [(0.1, 2, 3), (0.1, None, 10), (10, 2, 2), (20, 1, 1), (100, 2, 1), (5, None, 4)]
)
def test_the_disk_holds_the_checkpoints_that_are_kept_and_one_that_is_written(save, limit, checkpoints, tiny_folder):
    keys = {"method": "lora", "learning_rate": 1e-3, "max_steps": 20}
    recipe = recipe_for(tiny_folder, save_steps=float(save), save_total_limit=limit, **keys)
    cost = cost_of(recipe, shape_of(recipe), rows_for(recipe))
    assert cost.passing == 4 * cost.trained * (3 * checkpoints + 1)
    assert cost.disk == cost.passing + 4 * cost.trained


# Bytes at once, as three runs of recipes/offline/chain_sum.yaml had them (8 steps, one core), in trained.json
MEASURED = {"lora": 1_645_142_016, "lora_ga": 1_691_635_712, "full": 3_274_469_376}


@pytest.fixture(scope="module")
def smollm2_shape():
    return shape_of(resolved(model=NAME, task="chain_sum"))


@pytest.mark.parametrize("method", MEASURED)
def test_the_memory_is_near_that_of_runs_that_were_measured(method, smollm2_shape):
    recipe = resolved(model=NAME, task="chain_sum", method=method, learning_rate=2e-4, max_steps=8)
    lengths = Part(320, 23, 5, 19, is_counted=True)
    cost = cost_of(recipe, smollm2_shape, RowLengths(lengths, None, lengths))
    assert cost.memory + OF_THE_PROCESS == pytest.approx(MEASURED[method], rel=0.03)


@pytest.mark.parametrize(("method", "published"), [("lora", 23.18e9), ("full", 63.92e9)])
def test_the_memory_of_llama_2_7b_is_near_that_of_table_5(method, published):
    keys = {"model": "meta-llama/Llama-2-7b-hf", "task": "metamath_gsm8k", "dtype": "bfloat16", "method": method}
    recipe = resolved(**keys, learning_rate=2e-5, per_device_train_batch_size=1, metric="none", held_out_rows=1)
    rows = RowLengths(limits_of(recipe, 100_000), None, None)
    assert cost_of(recipe, shape_of(recipe), rows).memory == pytest.approx(published, rel=0.2)


def test_without_rows_or_steps_there_is_no_cost(tiny_folder):
    recipe = recipe_for(tiny_folder)
    nothing = RowLengths(None, None, None)
    assert cost_of(recipe, shape_of(recipe), nothing) is None
    with_steps = recipe_for(tiny_folder, max_steps=3)
    cost = cost_of(with_steps, shape_of(recipe), nothing)
    assert (cost.steps, cost.is_counted) == (3, False)
    assert cost.tokens == 3 * 8 * with_steps.sequence_length
    assert limits_of(recipe, None) is None


def test_the_most_of_costs_exceeds_each(tiny_folder):
    costs = []
    for method in ("lora", "full"):
        recipe = recipe_for(tiny_folder, method=method, learning_rate=1e-3)
        costs.append(cost_of(recipe, shape_of(recipe), rows_for(recipe)))
    highest = most(costs)
    assert highest.memory == max(cost.memory for cost in costs)
    assert highest.kept == costs[0].kept > costs[1].kept
    assert math.isfinite(highest.operations)
    assert not highest.is_counted
