import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraga.lab.comparison.cells import MOST_RATES, next_rate, planned
from loraga.lab.errors import RecipeError
from tests.lab.comparison.test_comparison import load

GRID = "methods: [full, lora]\nlearning_rates: [0.001, 0.002]\nranks: [4, 8]\n"


def plan(folder, text, values=None, failed=()):
    """The plan where `values` gives what the cells whose names begin so were chosen by."""
    comparison = load(folder, text)

    def value_of(name):
        return (values or {}).get(name)

    return planned(comparison, value_of, lambda name: name in failed)


def names(made):
    return [cell.name for cell in made.cells]


def carried_out(folder, text, value):
    """Every cell of a comparison, run in order by a function (variant, rank, rate) -> what it is chosen by."""
    comparison = load(folder, text)
    values = {}
    while True:
        made = planned(comparison, values.get, lambda name: False)
        waiting = [cell for cell in made.cells if cell.name not in values]
        if not waiting:
            return made, list(values)
        cell = waiting[0]
        values[cell.name] = value(cell.variant.method, cell.rank, cell.learning_rate)


def test_the_grid_has_each_variant_rank_and_rate_at_the_first_seed(tmp_path):
    assert names(plan(tmp_path, GRID + "seeds: [5, 6]")) == [
        "full-fine-tuning_lr0.001_seed5",
        "full-fine-tuning_lr0.002_seed5",
        "lora_r4_lr0.001_seed5",
        "lora_r4_lr0.002_seed5",
        "lora_r8_lr0.001_seed5",
        "lora_r8_lr0.002_seed5",
    ]


def test_every_seed_runs_at_every_rate_where_that_is_asked_for(tmp_path):
    text = "methods: [lora]\nlearning_rates: [0.001, 0.002]\nseeds: [0, 1]\nother_seeds: all\nauto: true"
    assert names(plan(tmp_path, text)) == [
        f"lora_r8_lr{rate}_seed{seed}" for rate in ("0.001", "0.002", "auto") for seed in (0, 1)
    ]


def test_the_recipe_of_a_cell_is_what_its_name_says(tmp_path):
    (cell,) = plan(tmp_path, "methods: [{method: lora_ga, gamma: 64}]\nauto: true\nranks: [4]\nseeds: [7]").cells
    recipe = cell.recipe
    assert (recipe.method, recipe.gamma, recipe.rank, recipe.seed, recipe.learning_rate) == (
        "lora_ga",
        64,
        4,
        7,
        "auto",
    )
    assert cell.folder.parts[-2:] == ("cells", "lora-ga-gamma-64_r4_lrauto_seed7")
    assert cell.name == cell.folder.name


def test_a_search_ends_when_each_best_rate_has_a_worse_neighbour_on_either_side(tmp_path):
    best = {"full": 0.0005, "lora": 0.016}
    text = "methods: [full, lora]\nlearning_rates: [0.001, 0.002]\nsearch: true\nseeds: [0, 1, 2]"
    made, done = carried_out(tmp_path, text, lambda method, rank, rate: abs(math.log(rate / best[method])))
    assert [(each.learning_rate, each.is_inside) for each in made.best] == [(0.0005, True), (0.016, True)]
    full = [name for name in done if name.startswith("full")]
    assert full[2:] == [
        f"full-fine-tuning_lr{rate}" for rate in ("0.0005_seed0", "0.00025_seed0", "0.0005_seed1", "0.0005_seed2")
    ]
    assert sum("seed0" in name for name in done if name.startswith("lora_")) == 6  # 0.001 to 0.032


def test_without_a_search_a_best_rate_at_the_edge_is_marked(tmp_path):
    made, done = carried_out(tmp_path, "methods: [lora]\nlearning_rates: [0.001, 0.002]", lambda *cell: -cell[2])
    assert [(each.learning_rate, each.is_inside) for each in made.best] == [(0.002, False)]
    assert len(done) == 2


def test_a_search_gives_up_after_so_many_rates_and_marks_it(tmp_path):
    text = "methods: [lora]\nlearning_rates: [0.001]\nsearch: true"
    made, done = carried_out(tmp_path, text, lambda method, rank, rate: rate)
    assert len(done) == MOST_RATES
    assert not made.best[0].is_inside


def test_a_diverged_cell_is_worse_than_any_other(tmp_path):
    text = "methods: [lora]\nlearning_rates: [0.001, 0.002, 0.004]\nsearch: true"
    made, done = carried_out(tmp_path, text, lambda method, rank, rate: math.inf if rate > 0.003 else 1 - rate)
    assert [(each.learning_rate, each.is_inside) for each in made.best] == [(0.002, True)]
    assert len(done) == 3


def test_where_everything_diverged_no_rate_is_best(tmp_path):
    text = "methods: [lora]\nlearning_rates: [0.001, 0.002]\nseeds: [0, 1]"
    made, done = carried_out(tmp_path, text, lambda *cell: math.inf)
    assert [(each.learning_rate, each.is_inside) for each in made.best] == [(None, False)]
    assert len(done) == 2  # no best rate for the other seed


def test_nothing_waits_for_a_failed_cell_and_it_chooses_nothing(tmp_path):
    text = "methods: [lora]\nlearning_rates: [0.001, 0.002, 0.004]\nseeds: [0, 1]"
    values = {"lora_r8_lr0.001_seed0": 2.0, "lora_r8_lr0.004_seed0": 3.0}
    made = plan(tmp_path, text, values, failed={"lora_r8_lr0.002_seed0"})
    assert made.best[0].learning_rate == 0.001
    assert names(made)[-1] == "lora_r8_lr0.001_seed1"


def test_the_seeds_mean_chooses_where_all_seeds_ran_everywhere(tmp_path):
    text = "methods: [lora]\nlearning_rates: [0.001, 0.002]\nseeds: [0, 1]\nother_seeds: all"
    values = {
        "lora_r8_lr0.001_seed0": 1.0,
        "lora_r8_lr0.001_seed1": 5.0,
        "lora_r8_lr0.002_seed0": 2.0,
        "lora_r8_lr0.002_seed1": 2.0,
    }
    assert plan(tmp_path, text, values).best[0].learning_rate == 0.002


def test_auto_is_not_among_the_rates_that_are_searched(tmp_path):
    text = "methods: [lora]\nlearning_rates: [0.002]\nauto: true\nsearch: true"
    made, _ = carried_out(tmp_path, text, lambda method, rank, rate: -1 if rate is None else abs(rate - 0.002))
    assert [each.learning_rate for each in made.best] == [0.002]
    assert sum(cell.learning_rate is None for cell in made.cells) == 1


def test_a_method_for_which_no_rate_is_suggested_has_no_auto_cell(tmp_path):
    text = "methods: [lora, adalora]\nlearning_rates: [0.002]\nauto: true\nmax_steps: 100"
    assert [cell.learning_rate for cell in plan(tmp_path, text).cells] == [0.002, None, 0.002]


def test_the_cells_of_the_grid_keep_their_numbers_when_others_follow(tmp_path):
    text = GRID + "search: true\nseeds: [0, 1]"
    before = names(plan(tmp_path, text))
    made, _ = carried_out(tmp_path, text, lambda method, rank, rate: abs(math.log(rate / 0.004)))
    assert names(made)[: len(before)] == before


@pytest.mark.parametrize(
    "methods", ["[lora, {method: lora, title: again}]", "[{method: lora, title: A b}, {method: rslora, title: a-b}]"]
)
def test_two_equal_cells_are_refused(tmp_path, methods):
    with pytest.raises(RecipeError, match="two cells are equal"):
        plan(tmp_path, f"methods: {methods}\nlearning_rates: [0.1]")


@given(
    st.dictionaries(st.sampled_from([2.0**-k for k in range(1, 12)]), st.floats(0, 10) | st.just(math.inf), min_size=1)
)
def test_the_next_rate_is_a_factor_of_two_outside_exactly_while_the_best_is_at_an_edge(values):
    best = min(values, key=lambda rate: (values[rate], rate))
    found = next_rate(values, most=20)
    if best == min(values):
        assert found == pytest.approx(best / 2, rel=1e-2)
    elif best == max(values):
        assert found == pytest.approx(2 * best, rel=1e-2)
    else:
        assert found is None
    assert next_rate(values, most=len(values)) is None


def test_no_rate_above_one_is_tried():
    assert next_rate({0.5: 2.0, 1.0: 1.0}, most=9) is None


@pytest.mark.parametrize(
    "text", ["learning_rates: [0.1, 0.2]", "learning_rates: [0.1]\nsearch: true", "learning_rates: [0.1]\nauto: true"]
)
def test_a_learning_rate_is_never_chosen_on_the_test_rows(tmp_path, text):
    comparison = load(tmp_path, f"methods: [full, lora]\n{text}", "validation_rows=null")
    with pytest.raises(
        RecipeError, match=r"validation_rows is missing, .*full fine-tuning.*never chosen on the test rows"
    ):
        planned(comparison, lambda name: None, lambda name: False)


def test_one_learning_rate_or_auto_alone_needs_no_validation_rows(tmp_path):
    for text in ("learning_rates: [0.1]\nseeds: [0, 1]", "auto: true"):
        comparison = load(tmp_path, f"methods: [lora]\n{text}", "validation_rows=null")
        assert planned(comparison, lambda name: None, lambda name: False).cells


def test_a_score_chooses_only_where_answers_to_the_validation_rows_are_judged(tmp_path):
    text = "methods: [lora]\nlearning_rates: [0.1, 0.2]\nchoose_by: score\nmetric: exact_match\nheld_out_rows: 1"
    with pytest.raises(RecipeError, match=r"choose_by: score needs validation_metric: true"):
        plan(tmp_path, text)
    assert plan(tmp_path, f"{text}\nvalidation_metric: true").cells
    assert plan(tmp_path, text.replace(", 0.2", "")).cells  # nothing is chosen
