"""The tables in docs/trainers.md, made of what a run of tests/integration/test_trainers_on_bases.py gave."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from tests.tables import ROOT, Part

from .cells import CELLS, OFFSETS, WAYS, WORKING, Cell

PART = Part(ROOT / "docs" / "trainers.md", "python -m tests.integration")
KEPT, BASE = "1 function kept", "2 base kept"
COLUMNS = (KEPT, BASE, *WAYS)
START = "the start"  # of a cell that is refused there

Place = tuple[str, str]  # a cell's name, and a column
TESTS: dict[str, Place] = {
    **{f"test_the_function_is_kept[{cell.name}]": (cell.name, KEPT) for cell in WORKING},
    **{f"test_disabling_the_trained_adapter_gives_the_base[{cell.name}]": (cell.name, BASE) for cell in WORKING},
    **{
        f"test_what_is_saved_loads_with_plain_peft_or_is_refused[{cell.name}-{way}]": (cell.name, way)
        for cell in WORKING
        for way in WAYS
    },
    **{
        f"test_what_cannot_be_started_is_refused_with_its_reason[{cell.name}]": (cell.name, START)
        for cell in CELLS.values()
        if cell.refusal is not None
    },
}


class Collector:
    """A plugin of pytest that notes how the test of each place in the tables ended."""

    def __init__(self) -> None:
        self.outcomes: dict[Place, str] = {}
        self.reasons: dict[Place, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        place = TESTS.get(report.nodeid.rpartition("::")[2])
        if place is None:
            return
        if report.failed:
            self.outcomes[place] = "failed"
        elif report.when == "call":
            self.outcomes[place] = report.outcome
        for key, value in report.user_properties:
            if key == "refusal":
                self.reasons[place] = without_layer(str(value))


def without_layer(reason: str) -> str:
    """An error's text, the same for every model."""
    return re.sub(r"^layer \S+:", "a layer:", reason)


def expected_refusals() -> dict[Place, str]:
    """How the errors start, by the registry."""
    found = {}
    for cell in CELLS.values():
        if cell.refusal is not None:
            found[cell.name, START] = cell.refusal
            continue
        for way in WAYS:
            refusal = cell.refusal_to_save(way)
            if refusal is not None:
                found[cell.name, way] = refusal
    return found


def render(outcomes: Mapping[Place, str], reasons: Mapping[Place, str]) -> list[str]:
    in_order = dict.fromkeys(reasons[place] for place in TESTS.values() if place in reasons)
    numbers = {reason: number for number, reason in enumerate(in_order, 1)}
    lines: list[str] = []
    for offset in OFFSETS:
        lines += [
            f'### offset="{offset}"',
            "",
            f"| trainer | base | {' | '.join(COLUMNS)} |",
            "|---" * (2 + len(COLUMNS)) + "|",
        ]
        for cell in (cell for cell in CELLS.values() if cell.offset == offset):
            cells = [_entry((cell.name, _column(cell, column)), outcomes, reasons, numbers) for column in COLUMNS]
            lines.append(f"| {cell.trainer} | {cell.base} | {' | '.join(cells)} |")
        lines.append("")
    return [*lines, "### The errors", "", *(f"{number}. {reason}" for reason, number in numbers.items())]


def recorded_reasons(part: str) -> list[str]:
    """The errors that the page gives."""
    return re.findall(r"^\d+\. (.+)$", part, re.M)


def _column(cell: Cell, column: str) -> str:
    return column if cell.refusal is None else START


def _entry(
    place: Place, outcomes: Mapping[Place, str], reasons: Mapping[Place, str], numbers: Mapping[str, int]
) -> str:
    if outcomes.get(place) == "passed" and place in reasons:
        return f"error {numbers[reasons[place]]}"
    return {"passed": "yes", "failed": "**no**"}.get(outcomes.get(place, ""), "not run")
