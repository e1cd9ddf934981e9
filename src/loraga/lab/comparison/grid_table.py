"""A comparison's own keys as the table of docs/comparing.md, read from their definition."""

from __future__ import annotations

from .comparison import grid_keys


def grid_table() -> str:
    """Every key of a comparison that is not a recipe's, as Markdown."""
    lines = ["| key | what |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{key}` | {what} |" for key, what in grid_keys().items())])
