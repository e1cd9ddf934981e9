import io
from dataclasses import replace

import pytest
from rich.console import Console

from loraga.lab.comparison.console import show_results
from tests.lab.comparison.synthetic import synthetic_results

RESULTS = synthetic_results(rows=12, steps=12)


def shown(results, width=140):
    console = Console(width=width, record=True, file=io.StringIO())
    show_results(results, console)
    return console.export_text()


def test_a_console_shows_each_variant_at_its_best_rate_and_what_is_missing():
    text = shown(RESULTS)
    assert text.count("LoRA-GA, gamma 4096") == 2
    assert "4e-3†" in text
    assert "Δ accuracy (%)" in text
    assert "not over seeds" in text
    assert "4 diverged, 1 failed, 1 missing" in text
    assert "DoRA, rank 8, rate 2e-3, seed 2: failed (no space left on device)" in text


def test_where_nothing_was_judged_it_shows_the_loss():
    text = shown(replace(RESULTS, metric="none"))
    assert "Δ test loss" in text
    assert "accuracy" not in text.splitlines()[2]


def test_names_are_no_markup():
    runs = tuple(replace(run, variant="[red]LoRA[/red]") for run in RESULTS.runs if run.variant == "LoRA")
    assert "[red]LoRA[/red]" in shown(replace(RESULTS, runs=runs, title="[bold]title", reference="[red]LoRA[/red]"))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_console(width):
    assert max(map(len, shown(RESULTS, width).splitlines())) <= width


def test_a_comparison_that_has_not_begun_is_no_error():
    assert "No run is there yet." in shown(replace(RESULTS, runs=(), best=()))
