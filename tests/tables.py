"""Tables in the documentation that runs of tests write, each into its part of a page.

A table is a module with `PART`, a `Collector` (a plugin of pytest that notes how the table's tests ended), and
`render(collector.outcomes, collector.reasons)`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """The part of a page that a command writes."""

    page: Path
    command: str

    @property
    def begin(self) -> str:
        return f"<!-- written by {self.command} -->"

    @property
    def end(self) -> str:
        return "<!-- end of what is written -->"

    def read(self) -> str:
        """The part with its marks."""
        text = self.page.read_text(encoding="utf-8")
        return text[text.index(self.begin) : text.index(self.end) + len(self.end)]

    def write(self, lines: list[str]) -> None:
        text = self.page.read_text(encoding="utf-8")
        self.page.write_text(text.replace(self.read(), self.joined(lines)), encoding="utf-8")

    def joined(self, lines: list[str]) -> str:
        return "\n".join([self.begin, "", *lines, "", self.end])


def run(*paths: str, tables: list[Any]) -> int:
    """Runs the tests of some paths whole, and writes the tables of what came out; gives pytest's exit code."""
    collectors = [table.Collector() for table in tables]
    arguments = [
        *(str(ROOT / path) for path in paths),
        "-q",
        *("-m", "not sampled"),  # also what `make test` leaves to `make torture`
        *("-k", "not documentation"),  # the pages, which are about to be written
        *("-W", "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning"),
    ]
    exit_code = pytest.main([*arguments, *sys.argv[1:]], plugins=collectors)
    for table, collector in zip(tables, collectors, strict=True):
        table.PART.write(table.render(collector.outcomes, collector.reasons))
        sys.stdout.write(f"{table.PART.page.relative_to(ROOT)} is written\n")
    return int(exit_code)
