import matplotlib.image
import numpy as np
import torch

from loraga.lab.inspection.figures import (
    LINE,
    LOWEST,
    draw_all,
    draw_coverage,
    draw_coverage_by_layer,
    draw_heat_map,
    draw_spectrum,
)
from loraga.lab.inspection.inspection import HeatMap, Inspection, Layer, heat_map_of
from loraga.lab.inspection.spectrum import Spectrum

NAMES = ("q_proj", "down_proj")


def inspection(blocks=3, known=40, gradient=None):
    """Layers whose singular values fall as 1 / i^power, more slowly in each block; 40 of them, or the first ones."""
    layers = []
    for block in range(blocks):
        for kind, name in enumerate(NAMES):
            values = [float(i) ** -(1.5 - 0.1 * block - 0.2 * kind) for i in range(1, 41)]
            spectrum = Spectrum((40, 60), tuple(values[:known]), sum(value**2 for value in values))
            layers.append(Layer(f"layers.{block}.{name}", name, block, spectrum))
    gradient = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)) if gradient is None else gradient
    return Inspection(4, "exact", 2, 1234.0, tuple(layers), (), heat_map_of("layers.0.q_proj", gradient))


def drawn(draw, found, path):
    draw(found, "MODEL on DATA", path)
    return matplotlib.image.imread(path)[..., :3]


def count(picture, colour):
    wanted = tuple(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return int(np.all(np.abs(picture - wanted) < 0.02, axis=-1).sum())


def test_all_pictures_are_drawn_also_where_only_the_first_values_are_known(tmp_path):
    draw_all(inspection(known=16), "MODEL on DATA", tmp_path)

    pictures = {each.name: matplotlib.image.imread(each) for each in tmp_path.iterdir()}
    assert set(pictures) == {"gradient.png", "spectrum.png", "coverage.png", "coverage_by_layer.png"}
    assert all(picture.shape[0] >= 700 and picture.shape[1] >= 1000 for picture in pictures.values())


def test_the_coverage_ends_where_it_is_not_known(tmp_path):
    whole = drawn(draw_coverage, inspection(), tmp_path / "whole.png")
    part = drawn(draw_coverage, inspection(known=16), tmp_path / "part.png")  # up to rank 8 of 128

    beyond = slice(700, None)  # columns: ranks above 8, without the numbers beside the points of rank 4
    for colour in (LINE, LOWEST):
        assert count(part[:450, beyond], colour) == 0 < count(whole[:450, beyond], colour)
        assert count(part[:, :500], colour) > 100


def test_each_kind_has_its_colour_in_the_spectrum(tmp_path):
    picture = drawn(draw_spectrum, inspection(), tmp_path / "spectrum.png")

    for colour in ("#1f77b4", "#ff7f0e"):  # the first two of matplotlib's table
        assert count(picture, colour) > 500


def test_many_kinds_have_different_colours(tmp_path):
    found = inspection()
    many = tuple(Layer(f"l.0.{i}", f"kind{i}", 0, found.layers[0].spectrum) for i in range(24))
    made = Inspection(4, "exact", 2, 9.0, many, (), found.heat_map)

    picture = drawn(draw_spectrum, made, tmp_path / "spectrum.png")

    legend = picture.reshape(-1, 3)
    assert len(np.unique(np.round(legend, 2), axis=0)) > 24


def test_the_heat_map_shows_a_row_and_a_column_that_stand_out(tmp_path):
    gradient = torch.full((40, 60), 1e-3)
    gradient[10, :], gradient[:, 30] = 1.0, 1.0

    picture = drawn(draw_heat_map, inspection(gradient=gradient), tmp_path / "gradient.png")

    bright = picture.sum(axis=-1) > 2.2  # magma's bright end, or the white around the axes
    inside = bright[150:640, 120:940]
    assert inside.mean(axis=1).max() > 0.95
    assert inside.mean(axis=0).max() > 0.95
    assert inside.mean() < 0.2


def test_a_gradient_that_is_constant_or_mostly_zero_can_be_drawn(tmp_path):
    one = torch.zeros(40, 60)
    one[3, 4] = 1e-5
    for name, gradient in {"constant": torch.ones(40, 60), "one": one}.items():
        drawn(draw_heat_map, inspection(gradient=gradient), tmp_path / f"{name}.png")


def test_the_table_of_blocks_grows_with_them_and_is_darker_where_less_is_covered(tmp_path):
    short = drawn(draw_coverage_by_layer, inspection(), tmp_path / "short.png")
    long = drawn(draw_coverage_by_layer, inspection(blocks=14), tmp_path / "long.png")

    assert long.shape[0] > short.shape[0]
    top, bottom = short[150, 300], short[600, 300]  # block 0 and block 2 of q_proj, beside the numbers
    assert top.sum() > bottom.sum()


def test_layers_outside_blocks_and_missing_kinds_leave_gaps(tmp_path):
    found = inspection()
    layers = (*found.layers[:3], Layer("head", "head", None, found.layers[0].spectrum))
    heat_map = HeatMap("head", (2, 2), 1, torch.ones(2, 2), part_of_rank=5)
    made = Inspection(4, "streaming", 2, 9.0, layers, (), heat_map)

    picture = drawn(draw_coverage_by_layer, made, tmp_path / "gaps.png")

    assert count(picture[150:600, 150:900], "#ffffff") > 50_000
