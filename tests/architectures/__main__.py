"""`python -m tests.architectures [pytest's arguments]`: tests every architecture and writes docs/architectures.md."""

import sys
from pathlib import Path

import pytest

from .table import PAGE, Collector, write

ROOT = Path(__file__).parents[2]


def run(*paths: str) -> int:
    """Runs the tests of some paths whole, and writes the table of what came out; gives pytest's exit code."""
    collector = Collector()
    arguments = [
        *(str(ROOT / path) for path in paths),
        "-q",
        *("-m", "not sampled"),  # also what `make test` leaves to `make torture`
        *("-k", "not documentation"),  # the page, which is about to be written
        *("-W", "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning"),
    ]
    exit_code = pytest.main([*arguments, *sys.argv[1:]], plugins=[collector])
    write(collector.outcomes, collector.reasons)
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} is written\n")
    return int(exit_code)


if __name__ == "__main__":
    sys.exit(run("tests/test_architectures.py"))
