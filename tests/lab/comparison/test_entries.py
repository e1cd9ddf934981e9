from dataclasses import replace

import pytest

from loraga.lab.comparison.entries import entries_of, headline, reference_of, shown_rows, values
from loraga.lab.comparison.results import Best
from tests.lab.comparison.synthetic import synthetic_results

RESULTS = synthetic_results(rows=8, steps=12)
ENTRIES = entries_of(RESULTS)


def entry(variant, rank):
    return next(each for each in ENTRIES if (each.variant, each.rank) == (variant, rank))


def test_there_is_an_entry_for_each_variant_and_rank_in_the_order_of_the_grid():
    assert [each.name for each in ENTRIES[:5]] == [
        "LoRA, rank 8",
        "LoRA, rank 32",
        "full fine-tuning",
        "rsLoRA, rank 8",
        "rsLoRA, rank 32",
    ]
    assert sum(len(each.runs) for each in ENTRIES) == len(RESULTS.runs)


def test_the_best_runs_are_those_at_the_best_rate_and_no_suggested_ones():
    lora = entry("LoRA", 8)
    at_auto = tuple(replace(run, learning_rate=2e-3) for run in lora.auto)
    lora = replace(lora, runs=lora.runs + at_auto)
    assert [(run.seed, run.learning_rate, run.is_auto) for run in lora.best] == [(s, 2e-3, False) for s in (0, 1, 2)]
    assert lora.rates == (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def test_runs_that_failed_or_are_missing_do_not_count_as_best():
    assert [run.seed for run in entry("DoRA", 8).best] == [0, 1]


def test_a_rate_where_every_run_failed_was_not_tried_but_one_where_they_diverged_was():
    gaussian = entry("Gaussian", 8)
    failed = tuple(replace(run, status="failed") if run.learning_rate == 5e-4 else run for run in gaussian.runs)
    assert replace(gaussian, runs=failed).tried == (1e-3, 2e-3, 4e-3, 8e-3)
    gone = tuple(replace(run, status="diverged") if run.learning_rate == 8e-3 else run for run in gaussian.runs)
    assert replace(gaussian, runs=gone).tried == gaussian.rates


@pytest.mark.parametrize(
    ("variant", "rank", "compared_with"),
    [("rsLoRA", 32, 32), ("rsLoRA", 8, 8), ("full fine-tuning", None, 8), ("LoRA", 32, 32)],
)
def test_an_entry_is_compared_with_the_reference_of_its_rank_or_of_the_first_one(variant, rank, compared_with):
    reference = reference_of(entry(variant, rank), ENTRIES, "LoRA")
    assert (reference.variant, reference.rank) == ("LoRA", compared_with)


def test_a_reference_without_a_finished_run_is_none():
    results = replace(RESULTS, best=tuple(Best("LoRA", rank, None, False) for rank in (8, 32)))
    assert reference_of(ENTRIES[3], entries_of(results), "LoRA") is None
    assert reference_of(ENTRIES[3], ENTRIES, "no such variant") is None


def test_values_are_those_of_finished_runs_by_seed():
    dora = entry("DoRA", 8)
    found = values(dora.at(2e-3), "loss", "test")
    assert found == {run.seed: run.test.loss for run in dora.at(2e-3) if run.seed != 2}
    unjudged = [replace(run, test=replace(run.test, score=None)) for run in dora.best]
    assert values(unjudged, "score", "test") == {}


def test_what_is_shown_follows_what_was_measured():
    assert (headline(RESULTS), shown_rows(RESULTS)) == ("score", "test")
    unjudged = tuple(replace(run, test=run.test and replace(run.test, score=None)) for run in RESULTS.runs)
    assert headline(replace(RESULTS, runs=unjudged)) == "loss"
    no_test = replace(RESULTS, metric="none", runs=tuple(replace(run, test=None) for run in RESULTS.runs))
    assert (headline(no_test), shown_rows(no_test)) == ("loss", "validation")
