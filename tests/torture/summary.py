"""What the torture tests have tried, summed over all of them and over all worker processes."""

from __future__ import annotations

from collections import Counter

COUNTED = ("injection points", "generated cases", "damaged files", "traps")


def pytest_terminal_summary(terminalreporter):
    counts: Counter = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                counts.update({name: value for name, value in report.user_properties if name in COUNTED})
    if counts:
        failures = sum(len(terminalreporter.stats.get(outcome, ())) for outcome in ("failed", "error"))
        said = ", ".join(f"{counts[name]} {name}" for name in COUNTED if counts[name])
        terminalreporter.write_line(f"torture: {said}, {failures} failures")
