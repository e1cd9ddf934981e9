"""Tests that what an evaluation left is read as data, rated, partly rated, or without targets."""

from __future__ import annotations

import json

import pytest

from loraga.lab.comparison.gather import read_measured
from loraga.lab.comparison.results import Measured

JUDGED = [{"row": 0, "loss": 1.25, "terms": 2, "score": 1.0}, {"row": 1, "loss": 2.5, "terms": 3, "score": 0.0}]
RATED = [{"row": 0, "loss": None, "terms": 0, "score": 7}, {"row": 1, "loss": None, "terms": 0, "score": 9}]
PARTLY = [RATED[0], {**RATED[1], "score": None}]
UNRATED = [{"row": 0, "loss": None, "terms": 0}, {"row": 1, "loss": None, "terms": 0}]


@pytest.mark.parametrize(
    ("lines", "loss", "score", "rows"),
    [
        (JUDGED, 2.0, 0.5, {"items": (1.0, 0.0), "losses": (1.25, 2.5), "terms": (2, 3)}),
        (RATED, None, 8.0, {"items": (7, 9)}),
        (PARTLY, None, 7.0, {}),
        (UNRATED, None, None, {}),
    ],
)
def test_rows_have_scores_only_where_all_have_and_losses_where_there_are_targets(lines, loss, score, rows, tmp_path):
    file = tmp_path / "evaluation.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [{"settings": {}}, *lines]))
    evaluation = {"rows": 2, "loss": loss, "score": score, "scores": {"judged": 2}}
    assert read_measured(evaluation, file) == Measured(2, loss, score, {"judged": 2}, **rows)
    assert read_measured(None, file) is None
