"""A table as data, and how it is written: Markdown, CSV, LaTeX, HTML.

A cell is a text for people and the numbers behind it, unrounded; CSV holds the numbers, the other formats the text.
"""

from __future__ import annotations

import csv
import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

Value = str | float | int | bool | None

# a bar is written by its number: inside a table, a backslash before it means several things to several readers
_MARKDOWN = {
    **{character: f"\\{character}" for character in "\\`*_{}[]#~$"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "|": "&#124;",
}
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "†": r"$\dagger$",
    "Δ": r"$\Delta$",
    "←": r"$\leftarrow$",
    "*": "{*}",  # this and the next would be taken for an option of the row before
    "[": "{[}",
    "]": "{]}",
}


@dataclass(frozen=True)
class Column:
    """A column: its heading with the unit, the names of its numbers in CSV, and whether it is set to the right."""

    heading: str
    fields: tuple[str, ...]
    is_number: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell: the text, and one number for each field of its column."""

    text: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its files.
        title: above it.
        columns: from left to right.
        rows: each with a cell a column.
        notes: sentences below it.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def only(self, headings: Collection[str]) -> Table:
        """The same with the columns of these headings alone."""
        kept = [place for place, column in enumerate(self.columns) if column.heading in headings]
        columns = tuple(self.columns[place] for place in kept)
        return Table(
            self.name, self.title, columns, tuple(tuple(row[place] for place in kept) for row in self.rows), self.notes
        )


def as_markdown(table: Table) -> str:
    """The table with its notes, for GitHub; no text is taken for markup."""
    lines = [
        _line(markdown(column.heading) for column in table.columns),
        _line("---:" if column.is_number else "---" for column in table.columns),
        *(_line(markdown(cell.text) for cell in row) for row in table.rows),
    ]
    notes = "".join(f"- {markdown(note)}\n" for note in table.notes)
    return "\n".join(lines) + "\n" + (f"\n{notes}" if notes else "")


def as_csv(table: Table) -> str:
    """The numbers, unrounded, under the names of the fields; what there is not is empty. Notes are not part of it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in column.fields])
    writer.writerows([value for cell in row for value in cell.values] for row in table.rows)
    return stream.getvalue()


def as_latex(table: Table) -> str:
    """A float with booktabs' rules, as wide as the text, with its notes; no text is taken for markup."""
    alignment = "".join("r" if column.is_number else "l" for column in table.columns)
    rows = [" & ".join(latex(cell.text) for cell in row) + r" \\" for row in table.rows]
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(latex(column.heading) for column in table.columns) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\par\medskip\raggedright\footnotesize",
        *(latex(note) + r"\par" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def as_html(table: Table) -> str:
    """A table in a box that scrolls to the side, and its notes as a list; no text is taken for markup."""
    heads = "".join(_html_cell(column, column.heading, "col") for column in table.columns)
    body = "".join(f"<tr>{_html_row(table.columns, row)}</tr>\n" for row in table.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in table.notes)
    return (
        f'<div class="wide"><table id="{html.escape(table.name)}">\n<caption>{html.escape(table.title)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
        + (f'<ul class="notes">\n{notes}</ul>\n' if notes else "")
    )


def markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return _escaped(text, _MARKDOWN)


def latex(text: str) -> str:
    """A text that LaTeX sets as it is, on one line."""
    return _escaped(text, _LATEX)


def _escaped(text: str, characters: Mapping[str, str]) -> str:
    return "".join(characters.get(character, character) for character in " ".join(text.split()))


def _html_row(columns: Sequence[Column], row: Sequence[Cell]) -> str:
    scopes = ["row", *[""] * (len(row) - 1)]
    cells = zip(columns, row, scopes, strict=True)
    return "".join(_html_cell(column, cell.text, scope) for column, cell, scope in cells)


def _html_cell(column: Column, text: str, scope: str = "") -> str:
    """A cell, or a heading of a row or a column."""
    kind = "number" if column.is_number else "text"
    if scope:
        return f'<th scope="{scope}" class="{kind}">{html.escape(text)}</th>'
    return f'<td class="{kind}">{html.escape(text)}</td>'


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
