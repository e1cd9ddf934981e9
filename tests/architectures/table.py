"""The table in docs/architectures.md, made of what a run of tests/test_architectures.py gave."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.tables import ROOT, Part

from . import ARCHITECTURES, FAMILIES

PART = Part(ROOT / "docs" / "architectures.md", "python -m tests.architectures")

COLUMNS = {
    "test_the_function_is_kept_bit_for_bit": "1 function kept",
    "test_disabling_the_trained_adapter_gives_the_original_base": "2 base kept",
    "test_what_is_saved_loads_with_plain_peft_onto_the_original_base": "3 saved complete",
    "test_the_same_seed_and_data_give_the_same_adapter_bit_for_bit": "5 repeatable",
    "test_nothing_but_the_adapter_is_changed": "6 no trace",
    "test_the_start_does_not_depend_on_the_losss_magnitude": "7 any loss scale",
    "test_the_estimated_gradient_is_that_of_autograd": "gradient",
    "test_checkpointing_in_train_mode_changes_no_gradient": "checkpointing",
}
REFUSED = "test_what_cannot_be_started_is_refused_with_its_reason"
REST = "test_what_cannot_be_started_stays_plain_lora_beside_the_rest_when_asked_for"
WITHOUT_CHECKPOINTING = ("ALBERT", "ConvNeXt")

Outcomes = Mapping[tuple[str, str], str]


class Collector:
    """A plugin of pytest that notes how each test of an architecture ended."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test, _, name = report.nodeid.rpartition("::")[2].removesuffix("]").partition("[")
        if name not in ARCHITECTURES:
            return
        if report.failed:
            self.outcomes[name, test] = "failed"
        elif report.when == "call":
            self.outcomes[name, test] = report.outcome
        for key, value in report.user_properties:
            if key == "refusal":
                self.reasons[name] = str(value)


def expected_outcomes() -> dict[tuple[str, str], str]:
    """What a run gives in which everything is as the registry says."""
    outcomes = {}
    for name, architecture in ARCHITECTURES.items():
        for test in COLUMNS if architecture.refusal is None else (REFUSED, REST):
            outcomes[name, test] = "passed"
    for name in WITHOUT_CHECKPOINTING:
        outcomes[name, "test_checkpointing_in_train_mode_changes_no_gradient"] = "skipped"
    return outcomes


def render(outcomes: Outcomes, reasons: Mapping[str, str]) -> list[str]:
    lines = [
        f"| | architecture | class | {' | '.join(COLUMNS.values())} |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for family, name in _rows(refused=False):
        cells = [_cell(name, test, outcomes) for test in COLUMNS]
        lines.append(f"| {family} | {name} | `{ARCHITECTURES[name].model}` | {' | '.join(cells)} |")
    lines += ["", "| | architecture | class | refused | the rest works | the error |", "|---|---|---|---|---|---|"]
    for family, name in _rows(refused=True):
        cells = [_cell(name, test, outcomes) for test in (REFUSED, REST)]
        reason = reasons.get(name, "not run").replace("|", "\\|")
        lines.append(f"| {family} | {name} | `{ARCHITECTURES[name].model}` | {' | '.join(cells)} | {reason} |")
    return lines


def recorded_reasons(written: str) -> dict[str, str]:
    """The errors that the page gives, by architecture."""
    rows = [line.strip("| ").split(" | ") for line in written.splitlines() if line.startswith("| ")]
    return {row[1]: row[5] for row in rows if len(row) == 6 and row[1] in ARCHITECTURES}


def _rows(refused: bool) -> list[tuple[str, str]]:
    return [
        (family, name)
        for family, architectures in FAMILIES.items()
        for name, architecture in architectures.items()
        if (architecture.refusal is not None) is refused
    ]


def _cell(name: str, test: str, outcomes: Outcomes) -> str:
    if (name, test) not in outcomes:
        return "not run"
    if outcomes[name, test] == "skipped" and test == "test_checkpointing_in_train_mode_changes_no_gradient":
        return "has none"
    return {"passed": "yes", "skipped": "not run"}.get(outcomes[name, test], "**no**")
