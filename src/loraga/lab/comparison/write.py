"""A comparison's report in a folder: tables, figures, PEFT's format, one page, and a README that GitHub shows.

README.md         tables and pictures
report.html       all of it in one file
tables/           each as .md, .csv and .tex
figures/          each as .png and .svg
peft/             a file a run, as PEFT's method_comparison keeps them
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..errors import LabError
from ..run_folder import write_whole
from . import notes
from .facts import facts_of, how_to_read
from .figures import picture_bytes, pictures_of
from .page import lead, page
from .peft_format import peft_records
from .table import as_csv, as_latex, as_markdown, markdown
from .tables import tables_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .figures import Picture
    from .results import Results
    from .table import Table

README, PAGE = "README.md", "report.html"
FORMATS = {"md": as_markdown, "csv": as_csv, "tex": as_latex}


def write_report(results: Results, folder: Path) -> dict[str, Path]:
    """Writes the whole report; what is missing in the results is said in it.

    Args:
        results: of the comparison, also of one that is not done.
        folder: is made; files of an earlier report are replaced.

    Returns:
        {name within the folder: the file}.

    Raises:
        LabError: if it cannot be written.
    """
    written = {}
    try:
        for name, content in report_files(results).items():
            written[name] = folder / name
            written[name].parent.mkdir(parents=True, exist_ok=True)
            write_whole(written[name], content, on_disk=False)  # hundreds of them, and results.json makes them again
    except OSError as cause:
        raise LabError(
            f"cannot write {cause.filename or folder}: {cause.strerror or cause}; what is there is kept"
        ) from cause
    return written


def report_files(results: Results) -> dict[str, bytes]:
    """The report's files.

    Args:
        results: of the comparison.

    Returns:
        {name within its folder: content}.
    """
    tables, pictures = tables_of(results), pictures_of(results)
    texts = {f"tables/{table.name}.{kind}": form(table) for table in tables for kind, form in FORMATS.items()}
    figures = {
        f"figures/{each.name}.{kind}": picture_bytes(each.figure, kind) for each in pictures for kind in ("png", "svg")
    }
    records = peft_records(results, created_at=datetime.now(UTC).isoformat(timespec="seconds"))
    texts |= {f"peft/{name}": json.dumps(record, indent=2) + "\n" for name, record in records.items()}
    texts[PAGE] = page(results, tables, [(each, figures[f"figures/{each.name}.svg"]) for each in pictures])
    texts[README] = readme(results, tables, pictures)
    return {**{name: text.encode() for name, text in texts.items()}, **figures}


def readme(results: Results, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The report as Markdown, with links to its pictures."""
    missing = notes.unfinished(results)
    parts = [
        f"# {markdown(results.title)}",
        markdown(lead(results)),
        "\n".join(["**What is missing**", "", *(f"- {markdown(each)}" for each in missing)]) if missing else "",
        *(f"## {markdown(table.title)}\n\n{as_markdown(table)}".rstrip() for table in tables),
        "## Figures" if pictures else "",
        *(f"![{markdown(each.title)}](figures/{each.name}.png)" for each in pictures),
        "## How to read this",
        *(markdown(each) for each in how_to_read(results)),
        "## What was run",
        "\n".join(f"- {name}: {markdown(value)}" for name, value in facts_of(results).items()),
        "\n".join(f"- {markdown(name)} {markdown(str(value))}" for name, value in results.versions.items()),
        "All of it in one file: [report.html](report.html). Every table as CSV and LaTeX: `tables/`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
