from dataclasses import replace

import pytest

from loraga.lab.comparison import notes
from loraga.lab.comparison.results import Best
from loraga.lab.comparison.tables import auto_table, best_table, rates_table
from tests.lab.comparison.synthetic import synthetic_results

RESULTS = synthetic_results(rows=12, steps=12)


def said(results):
    return " ".join(best_table(results).notes)


def test_the_number_of_seeds_is_said_and_how_little_that_is():
    assert "2 to 3 seeds: the spread is a rough guess." in said(RESULTS)
    one = replace(RESULTS, runs=tuple(run for run in RESULTS.runs if run.seed == 0))
    assert "one seed has no standard deviation" in said(one)
    assert "±" not in said(one)


@pytest.mark.parametrize(
    ("chosen_by", "text"), [("loss", "the lowest loss on validation"), ("score", "the highest accuracy on validation")]
)
def test_it_is_said_what_the_rate_was_chosen_by_and_that_test_rows_had_no_part(chosen_by, text):
    found = said(replace(RESULTS, chosen_by=chosen_by))
    assert text in found
    assert "test rows had no part in choosing it" in found


def test_a_rate_that_was_not_searched_is_said_and_nothing_is_said_to_be_chosen():
    at_best = {each.variant: each.learning_rate for each in RESULTS.best}
    one_rate = replace(RESULTS, runs=tuple(run for run in RESULTS.runs if run.learning_rate == at_best[run.variant]))
    assert "Learning rate not searched (one rate tried): LoRA, rank 8;" in said(one_rate)
    assert "had no part" not in said(one_rate)
    assert "not searched" not in said(RESULTS)


def test_the_interval_is_said_to_cover_rows_and_not_seeds():
    assert "It covers the draw of the rows, not that of the seeds" in said(RESULTS)
    assert "in percentage points" in said(RESULTS)
    assert "in percentage points" not in said(replace(RESULTS, metric="none"))


def test_comparisons_across_ranks_are_named():
    assert "Compared across ranks: full fine-tuning with LoRA, rank 8." in said(RESULTS)


def test_a_reference_without_a_finished_run_is_said():
    best = tuple(
        Best(each.variant, each.rank, None, False) if each.variant == "LoRA" else each for each in RESULTS.best
    )
    found = said(replace(RESULTS, best=best))
    assert "LoRA, the reference, has no finished run" in found
    assert "No finished run at a best learning rate: LoRA, rank 8; LoRA, rank 32." in found


def test_what_is_not_done_is_counted():
    assert notes.unfinished(RESULTS) == (
        "Of 234 runs, these are not done: 4 diverged, 1 failed, 1 missing (table of unfinished runs).",
    )
    assert notes.unfinished(replace(RESULTS, runs=())) == ("No run is there yet.",)


def test_the_table_of_rates_says_what_its_mark_is():
    assert (
        "← the best rate, chosen by validation loss, which need not be the best on these rows."
        in rates_table(RESULTS, "test").notes
    )


def test_a_mean_over_more_seeds_than_its_neighbours_is_said_to_be_another_one():
    at_best = {(each.variant, each.rank): each.learning_rate for each in RESULTS.best}
    searched = replace(
        RESULTS,
        runs=tuple(run for run in RESULTS.runs if run.seed == 0 or run.learning_rate == at_best[run.variant, run.rank]),
    )
    for where in ("test", "validation"):
        assert "chosen by the seeds that ran at every rate (0);" in rates_table(searched, where).notes[-1]
        assert not any("every rate" in note for note in rates_table(RESULTS, where).notes)


def test_the_table_of_suggested_rates_says_what_the_search_had_ahead():
    assert any("the suggestion is one" in note for note in auto_table(RESULTS).notes)


def test_long_lists_of_names_are_cut():
    best = tuple(Best(each.variant, each.rank, None, False) for each in RESULTS.best)
    assert "; and 3 more." in " ".join(notes.unfinished(replace(RESULTS, best=best)))


def test_a_console_gets_the_notes_that_must_not_be_missed():
    found = " ".join(notes.short(RESULTS))
    for text in ("rough guess", "had no part", "AdaLoRA", "not over seeds"):
        assert text in found
    assert notes.short(replace(RESULTS, best=())) == ()


def test_reasons_are_listed_and_cut_where_there_are_many():
    assert notes.reasons(RESULTS)[0] == "full fine-tuning, rate 4e-4, seed 0: diverged (the loss at step 20 is nan)"
    assert len(notes.reasons(RESULTS)) == 5
    failed = tuple(replace(run, status="failed", problem=None) for run in RESULTS.runs)
    assert notes.reasons(replace(RESULTS, runs=failed))[-1] == "and 222 more: table of unfinished runs"


def test_answers_that_nobody_judged_are_said():
    runs = tuple(replace(run, test=run.test and replace(run.test, score=None)) for run in RESULTS.runs)
    found = notes.unfinished(replace(RESULTS, runs=runs, metric="mt_bench"))
    assert found[0] == "No answer was judged (mt_bench): what is compared is the loss alone."
