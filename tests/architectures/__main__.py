"""`python -m tests.architectures [pytest's arguments]`: tests every architecture and writes docs/architectures.md."""

import sys

from tests.tables import run

from . import table

if __name__ == "__main__":
    sys.exit(run("tests/test_architectures.py", tables=[table]))
