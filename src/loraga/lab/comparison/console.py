"""What a comparison found, on a console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table as Grid

from . import notes
from .tables import best_table, score_heading

if TYPE_CHECKING:
    from rich.console import Console

    from .results import Results


def show_results(results: Results, console: Console) -> None:
    """Shows each variant at its best learning rate, and what is missing.

    Args:
        results: of the comparison.
        console: where.
    """
    table = best_table(results)
    shown = {"method", "rank", "best learning rate", "seeds"}
    measured = {column.heading for column in table.columns if column.fields[0].endswith(("_mean", "_difference"))}
    of_score = {heading for heading in measured if heading.endswith(score_heading(results))}
    table = table.only(shown | (of_score or measured))
    grid = Grid(title=escape(f"{results.title}: {table.title}"))
    for column in table.columns:
        grid.add_column(escape(column.heading), justify="right" if column.is_number else "left")
    for row in table.rows:
        grid.add_row(*(escape(cell.text) for cell in row))
    console.print(grid)
    for note in (*notes.short(results), *notes.unfinished(results), *notes.reasons(results)):
        console.print(note, highlight=False, markup=False)
