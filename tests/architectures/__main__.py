"""`python -m tests.architectures [pytest's arguments]`: tests every architecture and writes docs/architectures.md."""

import sys
from pathlib import Path

import pytest

from .table import PAGE, Collector, write

TESTS = Path(__file__).parents[1] / "test_architectures.py"

collector = Collector()
arguments = [
    str(TESTS),
    "-q",
    *("-m", ""),  # also what `make test` leaves to `make torture`
    *("-k", "not documentation"),  # the page, which is about to be written
    *("-W", "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning"),
]
exit_code = pytest.main([*arguments, *sys.argv[1:]], plugins=[collector])
write(collector.outcomes, collector.reasons)
sys.stdout.write(f"{PAGE.relative_to(Path(__file__).parents[2])} is written\n")
sys.exit(exit_code)
