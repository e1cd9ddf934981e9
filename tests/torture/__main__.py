"""`python -m tests.torture [pytest's arguments]`: tries everything, and writes the tables of docs that tests make."""

import sys

import tests.architectures.table
import tests.integration.table
from tests.tables import run

PATHS = (
    "tests/torture",
    "tests/integration/test_security.py",
    "tests/integration/test_trainers_on_bases.py",
    "tests/lab/comparison/test_toy.py",
    "tests/test_architectures.py",
)
sys.exit(run(*PATHS, tables=[tests.architectures.table, tests.integration.table]))
