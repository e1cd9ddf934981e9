"""Promises 1, 2 and 3 for every trainer on every base that runs here, with every offset, saved in every way.

`python -m tests.integration` runs this file and writes what came out into docs/trainers.md; `make test` runs a sample.
"""

from __future__ import annotations

import re

import pytest
import torch

import loraga
from tests.integration import table
from tests.integration.cells import CELLS, REFUSED, WAYS, WORKING, Run
from tests.models import relative_difference


def parameters(cells):
    return [pytest.param(cell, id=cell.name, marks=() if cell.is_sampled else pytest.mark.torture) for cell in cells]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(params=parameters(WORKING), scope="module")
def run(request, models, tmp_path_factory):
    """A trainer of the cell after its training."""
    run = Run(request.param, tmp_path_factory.mktemp("run"), models)
    run.train()
    return run


@pytest.fixture(autouse=True)
def counted(request, record_property):
    if {"run", "cell"} & set(request.fixturenames):
        record_property("promises of trainers", 1)


def test_the_function_is_kept(run):
    """Bit for bit beside the adapter; to float32's rounding in the weights; and to what is measured with neither."""
    rounding = 2**-7 if run.cell.rounds_its_head else 0
    assert relative_difference(run.before, run.logits(run.base())) <= rounding
    if run.cell.offset == "adapter":
        assert run.report.function_change == 0
        assert torch.equal(run.started, run.before)
        return
    allowed = {"weights": 1e-5, "none": 1e-2}[run.cell.offset]
    assert run.report.function_change <= allowed
    assert 0 < relative_difference(run.started, run.before) <= allowed


def test_disabling_the_trained_adapter_gives_the_base(run):
    base = run.logits(run.base())
    assert relative_difference(run.trained, base) > 1e-3
    assert torch.equal(run.disabled, base)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_loads_with_plain_peft_or_is_refused(run, way, tmp_path, record_property):
    refusal = run.cell.refusal_to_save(way)
    if refusal is None:
        WAYS[way](run, tmp_path / "saved")
        return
    with pytest.raises(loraga.SaveError) as error:  # noqa: PT011 (the registry says which)
        WAYS[way](run, tmp_path / "saved")
    assert table.without_layer(str(error.value)).startswith(refusal)
    assert not (tmp_path / "saved").exists()
    record_property("refusal", str(error.value))


@pytest.mark.parametrize("cell", parameters(REFUSED))
def test_what_cannot_be_started_is_refused_with_its_reason(cell, models, tmp_path, record_property):
    run = Run(cell, tmp_path, models)
    before = run.logits()
    with pytest.raises(loraga.OffsetError) as error:  # noqa: PT011 (the registry says which)
        run.start()
    assert table.without_layer(str(error.value)).startswith(cell.refusal)
    assert torch.equal(run.logits(), before)
    record_property("refusal", str(error.value))


def test_the_tables_in_the_documentation_list_every_cell_with_what_is_expected_of_it():
    part, expected = table.PART.read(), table.expected_refusals()
    reasons = {}
    for recorded in table.recorded_reasons(part):
        places = [place for place, refusal in expected.items() if recorded.startswith(refusal)]
        assert places, recorded
        reasons |= dict.fromkeys(places, recorded)
    assert reasons.keys() == expected.keys()
    assert part == table.PART.joined(table.render(dict.fromkeys(table.TESTS.values(), "passed"), reasons))


def test_every_cell_has_its_tests_and_no_test_is_without_a_cell(request):
    here = {item.name for item in request.session.items if item.path == request.path and "[" in item.name}
    assert here <= set(table.TESTS) | {name for name in here if name.startswith("test_a_cell_says")}
    assert len(CELLS) == len(WORKING) + len(REFUSED)
    assert {name for name, _ in table.TESTS.values()} == set(CELLS)


@pytest.mark.parametrize(
    ("ends", "entry"),
    [({"call": "failed"}, "**no**"), ({"teardown": "failed"}, "**no**"), ({"call": "skipped"}, "not run")],
)
def test_a_cell_says_yes_only_where_its_test_passed(ends, entry):
    collector = table.Collector()
    odd = f"test_the_function_is_kept[{WORKING[0].name}]"
    for test in table.TESTS:
        for when in ("setup", "call", "teardown"):
            outcome = ends.get(when, "passed") if test == odd else "passed"
            node = f"tests/integration/test_trainers_on_bases.py::{test}"
            collector.pytest_runtest_logreport(pytest.TestReport(node, ("", 0, ""), {}, outcome, None, when))
    rows = [line for line in table.render(collector.outcomes, {}) if re.match(r"\| \w+", line)]
    assert sum(entry in row for row in rows) == 1
    assert rows[1].split(" | ")[2:4] == [entry, "yes"]
