"""Settings of the whole suite: generated examples are the same on every run and every machine."""

from hypothesis import settings

settings.register_profile("loraga", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("loraga")
