import math
from dataclasses import replace

import matplotlib
import matplotlib.image
import pytest
from matplotlib.colors import to_hex

from loraga.lab.comparison.entries import entries_of
from loraga.lab.comparison.figures import draw_losses, draw_ranks, draw_rates, picture_bytes, pictures_of
from loraga.lab.comparison.results import Best, Curve
from loraga.lab.comparison.styles import styles_of
from loraga.lab.curves import running_mean
from tests.lab.comparison.synthetic import VARIANTS, synthetic_results

RESULTS = synthetic_results(rows=8, steps=20)
ENTRIES = entries_of(RESULTS)
OF_RANK_8 = [entry for entry in ENTRIES if entry.rank in (8, None)]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines_of(axes, variant):
    """The lines in a variant's colour."""
    return [line for line in axes.get_lines() if to_hex(line.get_color()).upper() == styles_of(RESULTS)[variant].colour]


def points_of(line):
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_there_is_a_picture_of_everything_that_can_be_shown():
    pictures = pictures_of(RESULTS)
    assert [each.name for each in pictures] == ["loss_rank8", "rates_rank8", "loss_rank32", "rates_rank32", "ranks"]
    for each in pictures:
        assert each.figure.get_suptitle() == each.title
        for axes in each.figure.axes:
            assert axes.get_xlabel()
            assert axes.get_lines()


def test_a_comparison_without_ranks_has_pictures_without_ranks():
    full = replace(RESULTS, runs=tuple(run for run in RESULTS.runs if run.rank is None))
    assert [each.name for each in pictures_of(full)] == ["loss", "rates"]


def test_without_a_finished_run_there_is_no_picture():
    failed = tuple(replace(run, status="failed") for run in RESULTS.runs)
    assert [each.name for each in pictures_of(replace(RESULTS, runs=failed))] == []


def test_losses_are_running_means_over_the_seeds_with_a_band():
    figure = draw_losses(RESULTS, OF_RANK_8, "a title")
    whole, end = figure.axes
    assert len(whole.get_lines()) == len(whole.collections) == 12
    runs = next(entry for entry in OF_RANK_8 if entry.variant == "EVA").best
    means = [running_mean(run.curve.losses) for run in runs]
    (line,) = lines_of(whole, "EVA")
    assert list(line.get_xdata()) == list(range(10, 21))
    assert list(line.get_ydata()) == pytest.approx([sum(each) / 3 for each in zip(*means, strict=True)])
    band = whole.collections[list(VARIANTS).index("EVA")].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(min(map(min, means)))
    assert band[:, 1].max() == pytest.approx(max(map(max, means)))
    assert whole.get_ylabel() == "training loss (nats per target token)"
    assert end.get_xlim()[0] == 10  # the second half of 20 steps


def test_the_legend_names_each_variant_with_its_seeds_and_says_what_the_band_is():
    figure = draw_losses(RESULTS, OF_RANK_8, "a title")
    assert legend_of(figure) == [f"{name} ({2 if name == 'DoRA' else 3})" for name in VARIANTS]
    assert "band: lowest to highest seed" in figure.legends[0].get_title().get_text()


def test_seeds_of_different_length_share_the_steps_that_all_have():
    runs = tuple(
        replace(run, curve=Curve(run.curve.steps[:15], run.curve.losses[:15])) if run.seed == 1 and run.curve else run
        for run in RESULTS.runs
    )
    figure = draw_losses(replace(RESULTS, runs=runs), entries_of(replace(RESULTS, runs=runs))[:1], "a title")
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [10, 11, 12, 13, 14, 15]


def test_losses_that_fall_far_have_a_logarithmic_axis():
    falling = tuple(10 * 0.7**step for step in range(20))
    runs = tuple(replace(run, curve=Curve(run.curve.steps, falling)) for run in ENTRIES[0].runs)
    results = replace(RESULTS, runs=runs)
    assert draw_losses(results, entries_of(results), "a title").axes[0].get_yscale() == "log"
    assert draw_losses(RESULTS, OF_RANK_8, "a title").axes[0].get_yscale() == "linear"


def test_scores_by_rate_have_a_point_a_seed_a_line_of_means_and_marks():
    figure = draw_rates(RESULTS, OF_RANK_8, "a title")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "Test accuracy (%)")
    means, seeds, suggested, best, diverged = lines_of(axes, "full fine-tuning")
    full = next(entry for entry in OF_RANK_8 if entry.rank is None)
    at_best = [100 * run.test.score for run in full.best]
    assert points_of(best) == [(1e-4, pytest.approx(sum(at_best) / 3))]
    assert [x for x, _ in points_of(means)] == list(full.rates)
    assert len(points_of(seeds)) == 3 * 4 + 1
    assert [x for x, _ in points_of(suggested)] == pytest.approx([1.7e-4, 2.0e-4, 2.3e-4])
    assert [x for x, _ in points_of(diverged)] == pytest.approx([4e-4, 4e-4], rel=0.1)
    assert legend_of(figure) == [
        *VARIANTS,
        "best, chosen on\nvalidation rows",
        "auto: suggested",
        "diverged, at the edge",
    ]


def test_the_legend_has_no_marks_that_the_picture_has_not():
    runs = tuple(run for run in RESULTS.runs if run.status == "done" and not run.is_auto)
    figure = draw_rates(replace(RESULTS, runs=runs), entries_of(replace(RESULTS, runs=runs)), "a title")
    assert legend_of(figure)[-1] == "best, chosen on\nvalidation rows"


def test_where_nothing_was_judged_losses_are_drawn():
    (axes,) = draw_rates(replace(RESULTS, metric="none"), OF_RANK_8, "a title").axes
    assert axes.get_ylabel() == "Test loss (nats per target token)"
    assert max(lines_of(axes, "LoRA")[0].get_ydata()) < 2


def test_scores_by_rank_show_variants_of_several_ranks_and_the_level_of_those_without():
    figure = draw_ranks(RESULTS, ENTRIES, "a title")
    (axes,) = figure.axes
    assert legend_of(figure) == ["LoRA", "full fine-tuning (no rank)", "rsLoRA", "LoRA-GA, gamma 4096"]
    means, seeds = lines_of(axes, "LoRA")
    assert list(means.get_xdata()) == [8, 32]
    assert len(points_of(seeds)) == 6
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "32"]


def test_a_variant_has_the_same_colour_in_every_picture():
    for picture in pictures_of(RESULTS):
        for axes in picture.figure.axes:
            assert lines_of(axes, "LoRA-GA, gamma 4096"), picture.name


def test_names_are_drawn_as_they_are():
    names = {"LoRA": "LoRA", "rsLoRA": "_under_ $x$ <b>&", "EVA": "$"}
    runs = tuple(replace(run, variant=names[run.variant]) for run in RESULTS.runs if run.variant in names)
    best = tuple(
        Best(names[each.variant], each.rank, each.learning_rate, True) for each in RESULTS.best if each.variant in names
    )
    results = replace(RESULTS, runs=runs, best=best)
    figure = draw_rates(results, entries_of(results), "_a $title$")
    assert {text.replace("\\$", "$").lstrip("\N{WORD JOINER}") for text in legend_of(figure)} > set(names.values())
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        svg = picture_bytes(figure, "svg").decode()
    for text in ("_a $title$", "_under_ $x$ &lt;b&gt;&amp;", ">$<"):
        assert text in svg.replace("\N{WORD JOINER}", "")


@pytest.mark.parametrize("finite", [0, 19])
def test_losses_that_are_not_finite_are_no_obstacle(finite):
    runs = tuple(
        replace(run, curve=Curve(run.curve.steps, (*run.curve.losses[:finite], *[math.nan] * (20 - finite))))
        for run in RESULTS.runs
        if run.curve and len(run.curve.steps) == 20
    )
    results = replace(RESULTS, runs=runs)
    figure = draw_losses(results, entries_of(results)[:3], "a title")
    assert math.isfinite(figure.axes[1].get_ylim()[1])
    assert picture_bytes(figure, "svg")


def test_the_same_results_give_the_same_files(tmp_path):
    first, second = (pictures_of(RESULTS)[-1].figure for _ in range(2))
    assert picture_bytes(first, "svg") == picture_bytes(second, "svg")
    png = picture_bytes(first, "png")
    assert png == picture_bytes(second, "png")
    (tmp_path / "ranks.png").write_bytes(png)
    assert matplotlib.image.imread(tmp_path / "ranks.png").shape[:2] == (825, 1500)
