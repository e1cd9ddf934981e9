from dataclasses import replace

from loraga.lab.comparison.facts import facts_of, how_to_read
from tests.lab.comparison.synthetic import synthetic_results

RESULTS = synthetic_results(rows=12, steps=12)


def test_what_was_run_is_said():
    facts = facts_of(RESULTS)
    assert facts["command"] == "loraga compare recipes/offline/sums.yaml"
    assert facts["validation rows"], facts["test rows"] == ("6", "12")
    assert facts["seeds"] == "0, 1, 2"
    assert facts["ranks"] == "8, 32"
    assert facts["training steps"] == "12"
    assert facts["runs"] == "228 of 234 done"
    assert facts["best rate chosen by"] == "loss on validation rows"
    assert facts["learning rates"].startswith("2.5e-5, 5e-5, 1e-4")


def test_what_is_not_there_is_said():
    facts = facts_of(replace(RESULTS, runs=(), metric="none"))
    assert facts["test rows"] == "none measured"
    assert facts["answers judged by"] == "nothing: the loss alone"
    assert facts["runs"] == "0 of 0 done"


def test_a_reader_is_told_what_intervals_cover_and_what_not():
    text = " ".join(how_to_read(RESULTS))
    assert "which test rows happened to be drawn" in text
    assert "does not say how far the difference could be due to the seeds" in text
    assert "one in twenty does so by chance" in text
    assert "{" not in text


def test_a_reader_is_told_whether_the_rate_was_searched():
    assert "searched over the rates of the second table" in how_to_read(RESULTS)[0]
    assert "AdaLoRA, rank 8" in how_to_read(RESULTS)[0]
    at_best = {each.variant: each.learning_rate for each in RESULTS.best}
    one_rate = replace(RESULTS, runs=tuple(run for run in RESULTS.runs if run.learning_rate == at_best[run.variant]))
    assert how_to_read(one_rate)[0].startswith("The learning rate was not searched")
    assert "nothing can be compared yet" in how_to_read(replace(RESULTS, best=()))[0]
