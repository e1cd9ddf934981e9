"""`python -m tests.torture [pytest's arguments]`: tries everything, and writes docs/architectures.md."""

import sys

from tests.architectures.__main__ import run

sys.exit(run("tests/torture", "tests/integration/test_security.py", "tests/test_architectures.py"))
