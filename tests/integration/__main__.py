"""`python -m tests.integration [pytest's arguments]`: tests every trainer on every base and writes docs/trainers.md."""

import sys

from tests.tables import run

from . import table

if __name__ == "__main__":
    sys.exit(run("tests/integration/test_trainers_on_bases.py", tables=[table]))
