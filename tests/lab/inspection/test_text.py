import pytest
import torch

from loraga.lab.inspection.inspection import HeatMap, Inspection, Layer
from loraga.lab.inspection.spectrum import Spectrum
from loraga.lab.inspection.text import (
    HEADINGS,
    LAYER_HEADINGS,
    answer,
    kind_rows,
    layer_rows,
    markdown,
    meaning,
    percent,
)


def layer(name, kind, block, *squares, shape=None):
    """A layer with these squared singular values."""
    values = tuple(square**0.5 for square in squares)
    return Layer(name, kind, block, Spectrum(shape or (len(values), 20), values, sum(squares)))


def inspection(*layers, rank=1, without=()):
    heat_map = HeatMap(layers[0].name, (3, 4), 1, torch.ones(3, 4))
    return Inspection(rank, "exact", 2, 44.0, layers, without, heat_map)


def example():
    """Rank 1 covers 90, 70 and 50 %; 90 % takes rank 1, 2 and 3."""
    return inspection(
        layer("a.0.q", "q", 0, 50, 40, 6, 4),
        layer("a.0.k", "k", 0, 40, 30, 20, 10),
        layer("a.1.q", "q", 1, 30, 20, 15, 15, 15, 5),
    )


def test_the_answer_names_median_worst_and_the_ranks_for_90_percent():
    assert answer(example()) == [
        "Rank 1 covers 70.0 % of the squared gradient in the median layer, 50.0 % in the worst (a.1.q).",
        "90 % would need rank 2 in half of the layers, rank 3 in all of them.",
        "Looked at: the gradient over 44 target tokens in 2 micro-batches, of 3 layers; all singular values are known.",
    ]


def test_what_is_not_known_is_not_claimed():
    found = inspection(
        *example().layers[:2], layer("a.1.q", "q", 1, 30, 20, 15, 15, shape=(20, 20)), without=("a.2.q",)
    )

    lines = answer(found)

    assert lines[1] == "90 % would need rank 2 in half of the layers, rank 2 in all of them."
    assert lines[2].endswith(
        "at least its first 4 singular values are estimated, and of the rest their norm (estimator: streaming)."
    )
    assert lines[3] == "1 layers have no gradient on these rows, such as a.2.q; they are left out."


def test_a_rank_beyond_what_is_known_is_called_so():
    found = inspection(Layer("a.0.q", "q", 0, Spectrum((20, 20), (1.0, 1.0), 10.0)))

    assert answer(found)[1] == (
        "90 % would need more than rank 1, the last one known, in half of the layers, "
        "more than rank 1, the last one known, in all of them."
    )
    assert layer_rows(found.layers, found)[0][-1] == "> 1"
    assert kind_rows(found)[0][-2:] == ("> 1", "> 1")


def test_the_meaning_says_what_the_share_is_no_measure_of():
    text = " ".join(meaning(8))

    assert "along its 16 strongest singular directions" in text
    assert "does not say: how good the model will be" in text
    assert "four times as many (gradient_batches)" in text


def test_a_table_has_a_row_for_each_kind():
    rows = [dict(zip(HEADINGS, row, strict=True)) for row in kind_rows(example())]

    assert [row["kind of layer"] for row in rows] == ["q", "k"]
    assert rows[0]["layers"] == "2"
    assert rows[0]["median share"] == "70.0 %"
    assert rows[0]["lowest share"] == "50.0 %"
    assert (rows[0]["90 % in half"], rows[0]["90 % in all"]) == ("1", "3")
    assert rows[1]["median norm"] == "10"


def test_the_page_lists_the_worst_and_the_best_layers_in_order():
    page = markdown(example(), "MODEL on DATA")

    least, most = (
        page.index("## The 3 layers that rank 1 covers least"),
        page.index("## The 3 layers that it covers most"),
    )
    assert page.startswith("# The gradient of MODEL on DATA\n")
    tables = [page[least:most], page[most:]]
    for table, order in zip(tables, (("a.1.q", "a.0.k", "a.0.q"), ("a.0.q", "a.0.k", "a.1.q")), strict=True):
        at = [table.index(f"| {name} |") for name in order]
        assert at == sorted(at)
    assert f"| {' | '.join(LAYER_HEADINGS)} |" in page
    assert "| a.0.q | 4 x 20 | 10 | 90.0 % | 1 |" in page
    assert "![coverage against rank](coverage.png)" in page


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100 %"), (0.99951, "> 99.9 %"), (0.9994, "99.9 %"), (0.5, "50.0 %"), (0.0, "0.0 %")]
)
def test_less_than_everything_is_not_called_100_percent(share, text):
    assert percent(share) == text
