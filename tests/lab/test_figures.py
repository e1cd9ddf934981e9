import math

import matplotlib.image
import numpy as np

from loraga.lab.figures import Curve, draw_losses

FALLING = [2 - 0.02 * step for step in range(60)]


def drawn(tmp_path, curves):
    draw_losses(curves, tmp_path / "loss.png", "a title")
    return matplotlib.image.imread(tmp_path / "loss.png")


def test_picture_shows_each_run_in_its_colour(tmp_path):
    picture = drawn(
        tmp_path, [Curve("LoRA", FALLING, "#ff0000"), Curve("LoRA-GA", FALLING[::-1], "#0000ff", dashed=True)]
    )

    red = np.all(picture[..., :3] == (1, 0, 0), axis=-1).sum()
    blue = np.all(picture[..., :3] == (0, 0, 1), axis=-1).sum()
    assert red > blue > 500  # the dashed one has less


def test_a_run_that_diverged_is_drawn_as_far_as_it_goes(tmp_path):
    picture = drawn(tmp_path, [Curve("LoRA", [*FALLING[:30], *[math.nan] * 30], "#ff0000")])

    assert np.all(picture[..., :3] == (1, 0, 0), axis=-1).sum() > 200
