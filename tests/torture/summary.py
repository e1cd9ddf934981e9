"""What the torture tests have tried, summed over all of them and over all worker processes."""

from __future__ import annotations

from collections import Counter

import pytest

COUNTED = (
    "injection points",
    "generated cases",
    "damaged files",
    "traps",
    "promises on architectures",
    "promises of trainers",
)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the outermost writes last
def pytest_terminal_summary(terminalreporter):
    yield
    counts: Counter = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call" and not report.skipped:
                counts.update({name: value for name, value in report.user_properties if name in COUNTED})
    if counts:
        counts["failures"] = sum(len(terminalreporter.stats.get(outcome, ())) for outcome in ("failed", "error"))
        terminalreporter.write_sep("=", "tried to break it")
        for name in (*(each for each in COUNTED if counts[each]), "failures"):
            terminalreporter.write_line(f"{name:30}{counts[name]:8}")
