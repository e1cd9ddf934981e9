"""What an inspection says on a console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .files import FILES
from .text import HEADINGS, answer, kind_rows, meaning

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from .inspection import Inspection


def show_inspection(inspection: Inspection, title: str, folder: Path, console: Console) -> None:
    """Shows the answer, a table of the kinds of layers, and where the files are.

    Args:
        inspection: what was found.
        title: what was inspected.
        folder: where its files are.
        console: where.
    """
    first, *rest = answer(inspection)
    console.print(f"[bold]{escape(first)}[/bold]", highlight=False)
    for line in rest:
        console.print(line, highlight=False, markup=False)
    caption = (
        f"share: of the squared gradient, at rank {inspection.rank}; 90 % in half, in all: the rank that covers 90 %"
    )
    table = Table(title=escape(title), caption=f"{caption} in half of the layers, in all of them")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for row in kind_rows(inspection):
        table.add_row(*map(escape, row))
    console.print(table)
    for line in meaning(inspection.rank):
        console.print(line, highlight=False, markup=False)
    console.print(f"{folder}: {', '.join(FILES)}", highlight=False, markup=False, soft_wrap=True)
