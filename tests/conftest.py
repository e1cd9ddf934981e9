"""Settings of the whole suite: generated examples are the same on every run and every machine."""

from hypothesis import settings

from tests.torture.summary import pytest_terminal_summary  # noqa: F401  # pytest's hook: it says what was tried

settings.register_profile("loraga", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("loraga")
