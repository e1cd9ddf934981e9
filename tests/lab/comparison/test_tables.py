import statistics
from dataclasses import replace

import numpy as np
import pytest

from loraga.lab.comparison.results import Best
from loraga.lab.comparison.statistics import RESAMPLES
from loraga.lab.comparison.tables import auto_table, best_table, rates_table, tables_of, unfinished_table
from loraga.lab.comparison.words import NOTHING
from tests.lab.comparison.synthetic import synthetic_results

RESULTS = synthetic_results(rows=40, steps=20)
BEST = best_table(RESULTS)


def row_of(table, variant, rank=8):
    """A row's numbers, by the names of their fields."""
    names = [name for column in table.columns for name in column.fields]
    for row in table.rows:
        found = dict(zip(names, [value for cell in row for value in cell.values], strict=True))
        if (found["variant"], found["rank"]) == (variant, rank):
            return found
    raise AssertionError(f"no row of {variant}, {rank}")


def text_of(table, variant, heading, rank=8):
    place = [column.heading for column in table.columns].index(heading)
    return next(row[place].text for row in table.rows if (row[0].text, row[1].text) == (variant, str(rank)))


def runs_of(variant, rank=8, rate=None):
    return [run for run in RESULTS.runs if (run.variant, run.rank, run.learning_rate) == (variant, rank, rate)]


@pytest.mark.parametrize("table", tables_of(RESULTS), ids=lambda table: table.name)
def test_every_row_has_a_cell_a_column_and_every_cell_a_value_a_field(table):
    assert table.rows
    for row in table.rows:
        assert [len(cell.values) for cell in row] == [len(column.fields) for column in table.columns]
    fields = [name for column in table.columns for name in column.fields]
    assert len(set(fields)) == len(fields)


def test_score_and_loss_are_means_over_the_seeds_at_the_best_rate_on_test_rows():
    runs = runs_of("rsLoRA", rate=1e-3)
    row = row_of(BEST, "rsLoRA")
    assert row["score_mean"] == pytest.approx(statistics.mean(run.test.score for run in runs))
    assert row["score_std"] == pytest.approx(np.std([run.test.score for run in runs], ddof=1))
    assert row["loss_mean"] == pytest.approx(statistics.mean(run.test.loss for run in runs))
    assert (row["learning_rate"], row["seeds"], row["score_seeds"]) == (1e-3, 3, 3)
    assert text_of(BEST, "rsLoRA", "accuracy (%)").startswith(f"{100 * row['score_mean']:.1f} ± ")


def test_differences_are_those_to_the_reference_at_its_own_best_rate():
    ours, theirs = runs_of("rsLoRA", rate=1e-3), runs_of("LoRA", rate=2e-3)
    row = row_of(BEST, "rsLoRA")
    mean = statistics.mean
    assert row["score_difference"] == pytest.approx(
        mean(r.test.score for r in ours) - mean(r.test.score for r in theirs)
    )
    assert row["loss_difference"] == pytest.approx(mean(r.test.loss for r in ours) - mean(r.test.loss for r in theirs))
    assert row["score_difference_low"] < row["score_difference"] < row["score_difference_high"]
    assert RESAMPLES == 10_000


def test_the_reference_is_not_compared_with_itself_but_reaches_its_own_end():
    row = row_of(BEST, "LoRA", 32)
    assert row["score_difference"] is None
    assert row["steps_to_end"] <= 20
    assert row["steps_to_end_reached"] == 3


def test_a_best_rate_at_the_edge_is_marked_and_named_below():
    assert text_of(BEST, "AdaLoRA", "best learning rate") == "4e-3†"
    assert text_of(BEST, "LoRA", "best learning rate") == "2e-3"
    assert any(note.startswith("†") and "AdaLoRA, rank 8" in note for note in BEST.notes)


def test_seeds_that_are_not_done_are_counted_and_in_no_mean():
    row = row_of(BEST, "DoRA")
    assert (row["seeds"], row["seeds_planned"], row["failed"]) == (2, 3, 1)
    assert text_of(BEST, "DoRA", "seeds") == "2 of 3"
    assert text_of(BEST, "DoRA", "not done") == "1 failed"
    assert row_of(BEST, "full fine-tuning", None)["diverged"] == 2
    assert row_of(BEST, "EVA")["missing"] == 1
    assert any("Means without the seeds" in note and "DoRA" in note for note in BEST.notes)


def test_time_memory_and_parameters_are_those_of_the_best_runs():
    row = row_of(BEST, "full fine-tuning", None)
    assert row["seconds_per_step"] == 3.4
    assert row["peak_memory_bytes"] == 4 * 2**30 + 2000
    assert row["trainable_parameters"] == 134_515_008


def test_steps_that_no_seed_needs_are_said_as_such():
    lora = [run for run in RESULTS.runs if run.variant == "LoRA"]
    slow = [replace(run, curve=replace(run.curve, losses=(9.0,) * 20)) for run in runs_of("rsLoRA", rate=1e-3)]
    table = best_table(replace(RESULTS, runs=(*lora, *slow)))
    assert text_of(table, "rsLoRA", "steps to the reference's end") == "not in 20"


def test_where_nothing_was_judged_the_loss_is_all_there_is():
    table = best_table(replace(RESULTS, metric="none"))
    headings = [column.heading for column in table.columns]
    assert "accuracy (%)" not in headings
    assert {"test loss", "Δ test loss"} < set(headings)


def test_a_score_that_is_no_share_is_no_percentage():
    table = best_table(replace(RESULTS, is_share=False, score="rating"))
    assert "rating" in [column.heading for column in table.columns]
    assert text_of(table, "LoRA", "rating").startswith("0.")


def test_without_test_rows_the_validation_rows_are_shown_and_it_is_said():
    results = replace(RESULTS, runs=tuple(replace(run, test=None) for run in RESULTS.runs))
    table = best_table(results)
    assert "validation loss" in [column.heading for column in table.columns]
    assert any("No test row was measured" in note for note in table.notes)
    assert [each.name for each in tables_of(results)] == ["best", "rates_validation", "auto", "unfinished"]


def test_every_rate_is_in_the_table_of_rates():
    table = rates_table(RESULTS, "test")
    row = row_of(table, "Gaussian")
    runs = runs_of("Gaussian", rate=4e-3)
    assert row["mean_at_0.004"] == pytest.approx(statistics.mean(run.test.score for run in runs))
    assert row["seeds_at_0.004"] == 3
    assert text_of(table, "Gaussian", "2e-3").endswith("(3) ←")
    assert text_of(table, "Gaussian", "8e-3").endswith("(1, 2 diverged)")
    assert text_of(table, "Gaussian", "1e-4") == NOTHING


def test_the_validation_table_shows_what_the_rate_was_chosen_by():
    assert rates_table(RESULTS, "validation").title == "Every learning rate: loss on validation rows"
    by_score = rates_table(replace(RESULTS, chosen_by="score"), "validation")
    assert by_score.title == "Every learning rate: accuracy (%) on validation rows"


def test_rates_at_which_nothing_came_out_say_why():
    runs = tuple(
        replace(run, status="diverged", test=None) if run.learning_rate == 8e-3 else run for run in RESULTS.runs
    )
    assert text_of(rates_table(replace(RESULTS, runs=runs), "test"), "LoRA", "8e-3") == "3 diverged"


def test_suggested_rates_stand_beside_the_searched_best():
    table = auto_table(RESULTS)
    row = row_of(table, "LoRA-GA, gamma 4096")
    suggested = [run for run in RESULTS.runs if run.variant == "LoRA-GA, gamma 4096" and run.rank == 8 and run.is_auto]
    best = runs_of("LoRA-GA, gamma 4096", rate=1e-3)
    assert row["factor"] == pytest.approx(statistics.geometric_mean([1.7, 2.0, 2.3]))
    assert row["score_mean"] == pytest.approx(statistics.mean(run.test.score for run in suggested))
    assert row["loss_difference"] == pytest.approx(
        statistics.mean(run.test.loss for run in suggested) - statistics.mean(run.test.loss for run in best)
    )
    assert {row[0].text for row in table.rows} == {"LoRA", "full fine-tuning", "LoRA-GA, gamma 4096"}


def test_a_suggestion_without_a_searched_best_has_no_factor():
    only_auto = replace(RESULTS, runs=tuple(run for run in RESULTS.runs if run.is_auto), best=())
    row = row_of(auto_table(only_auto), "LoRA")
    assert row["factor"] is None
    assert row["score_mean"] is not None


def test_unfinished_runs_have_their_reasons():
    table = unfinished_table(RESULTS)
    shown = [[cell.text for cell in row] for row in table.rows]
    assert ["DoRA", "8", "2e-3", "2", "failed", "no space left on device"] in shown
    assert ["EVA", "8", "2.5e-4", "1", "missing", NOTHING] in shown
    assert len(shown) == 6


def test_tables_that_have_nothing_to_say_are_left_out():
    done = tuple(run for run in RESULTS.runs if run.status == "done" and not run.is_auto)
    assert [table.name for table in tables_of(replace(RESULTS, runs=done))] == [
        "best",
        "rates_test",
        "rates_validation",
    ]


def test_no_best_rate_is_a_row_of_dashes():
    none = replace(RESULTS, best=tuple(Best(each.variant, each.rank, None, False) for each in RESULTS.best))
    row = best_table(none).rows[0]
    assert [cell.text for cell in row][:6] == ["LoRA", "8", "4.88M", NOTHING, NOTHING, NOTHING]
