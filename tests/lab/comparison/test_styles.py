from dataclasses import replace
from itertools import combinations

import numpy as np
from matplotlib.colors import to_rgb

from loraga.lab.comparison.styles import COLOURS, REFERENCE, plain, styles_of
from tests.lab.comparison.synthetic import VARIANTS, synthetic_results

RESULTS = synthetic_results(rows=8, steps=12, seeds=(0,))
# Machado, Oliveira and Fernandes 2009, severity 1
EYES = {
    "all cones": np.eye(3),
    "no red ones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green ones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue ones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]


def seen(colour, eye):
    """A colour in CIELAB, as an eye sees it."""
    rgb = np.asarray(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(np.asarray(TO_XYZ) @ np.clip(np.asarray(eye) @ linear, 0, 1) / (0.95047, 1.0, 1.08883))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_are_told_apart_by_every_kind_of_eye():
    for eye in EYES.values():
        for one, other in combinations([REFERENCE, *COLOURS], 2):
            assert np.linalg.norm(seen(one, eye) - seen(other, eye)) > 12, (one, other)  # 2.3 can just be noticed


def test_twelve_variants_have_colours_of_their_own_and_the_reference_is_black():
    styles = styles_of(RESULTS)
    assert list(styles) == list(VARIANTS)
    assert len({style.colour for style in styles.values()}) == 12
    assert styles["LoRA"].colour == REFERENCE


def test_beyond_the_colours_the_dash_differs():
    runs = tuple(replace(RESULTS.runs[0], variant=f"variant {number}") for number in range(30))
    styles = styles_of(replace(RESULTS, runs=runs))
    assert len({(style.colour, style.dash, style.marker) for style in styles.values()}) == 31


def test_no_text_is_a_formula_or_hidden():
    assert plain("$x$") == r"\$x\$"
    assert not plain("_hidden").startswith("_")
    assert plain("plain") == "plain"
