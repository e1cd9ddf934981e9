import json

import pytest

from tests.lab.conftest import ROWS, saved, tiny_model

from .running import RECIPE


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a tiny model, rows and a comparison, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    saved(tiny_model(), tmp_path / "base")
    for name, rows in (("rows", ROWS[:18]), ("test", ROWS[18:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "two.yaml").write_text(RECIPE)
    return tmp_path
