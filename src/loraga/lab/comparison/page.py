"""One HTML page that holds a whole comparison: no network, no script, pictures inside."""

from __future__ import annotations

import base64
import html
import json
from typing import TYPE_CHECKING, Any

from loraga import __version__

from . import notes
from .facts import facts_of, how_to_read
from .table import as_html
from .words import seeds_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .figures import Picture
    from .results import Results
    from .table import Table

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 92rem; padding: 1rem; color: #1b1b1b; background: #fff;
       font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #d0d0d0; padding-bottom: .2rem; }
p, li, dd { max-width: 48rem; }
a { color: #0b57a4; }
nav a { display: inline-block; margin-right: 1rem; padding: .3rem 0; }
.lead { color: #444; }
.missing { border-left: .3rem solid #a33; background: #fdf3f2; padding: .5rem 1rem; }
.missing ul { margin: .3rem 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; margin: 1.2rem 0 .4rem; }
table { border-collapse: collapse; font-size: .875rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e2e2e2; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.text, th.text { text-align: left; }
td.text { min-width: 6rem; }
thead th { border-bottom: 2px solid #666; vertical-align: bottom; background: #fff; }
thead th.number { white-space: normal; min-width: 3.2rem; }
tbody th { font-weight: 600; min-width: 7rem; position: sticky; left: 0; background: #fff; }
tbody tr:nth-child(even) > * { background: #f7f7f7; }
.notes { font-size: .875rem; color: #333; padding-left: 1.2rem; }
figure { margin: 1.5rem 0; overflow-x: auto; }
figure img { max-width: 100%; min-width: 44rem; height: auto; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .3rem 1rem; margin: 0; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "Liberation Mono", Menlo, monospace; font-size: .875rem; }
pre { overflow-x: auto; background: #f7f7f7; padding: .8rem; }
footer { margin-top: 3rem; color: #555; font-size: .875rem; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
"""
# "img-src data:" is what the page needs, and all that it may do
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(results: Results, tables: Sequence[Table], pictures: Sequence[tuple[Picture, bytes]]) -> str:
    """The page.

    Args:
        results: of the comparison.
        tables: all of them.
        pictures: each with its content as SVG.

    Returns:
        HTML that stands for itself.
    """
    sections = {
        "tables": ("Tables", "".join(as_html(table) for table in tables)),
        "figures": ("Figures", "".join(_figure(*each) for each in pictures) or _paragraphs(["No run to draw yet."])),
        "reading": ("How to read this", _paragraphs(how_to_read(results))),
        "run": ("What was run", _what_was_run(results)),
    }
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, (heading, _) in sections.items())
    parts = "".join(
        f'<section id="{name}">\n<h2>{heading}</h2>\n{content}</section>\n'
        for name, (heading, content) in sections.items()
    )
    title = html.escape(results.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n"
        f'<p class="lead">{html.escape(lead(results))}</p>\n{_missing(results)}<nav>{links}</nav>\n</header>\n'
        f"<main>\n{parts}</main>\n<footer>Written by loraga {html.escape(__version__)} from results.json, which holds "
        "every run.</footer>\n</body>\n</html>\n"
    )


def lead(results: Results) -> str:
    """What the comparison is, in one sentence."""
    seeds = seeds_text(len({run.seed for run in results.runs}))
    is_done = sum(run.status == "done" for run in results.runs)
    return (
        f"{results.model} on {results.task}: {len(results.variants)} methods, {seeds}, "
        f"{is_done} of {len(results.runs)} runs done."
    )


def _missing(results: Results) -> str:
    if not (sentences := notes.unfinished(results)):
        return ""
    items = "".join(f"<li>{html.escape(each)}</li>\n" for each in sentences)
    return f'<div class="missing"><strong>What is missing</strong>\n<ul>\n{items}</ul></div>\n'


def _figure(picture: Picture, svg: bytes) -> str:
    # As an image, not as elements: the names within two SVGs would clash on one page.
    content = base64.b64encode(svg).decode()
    text = html.escape(picture.title)
    source = f"data:image/svg+xml;base64,{content}"
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>\n'


def _what_was_run(results: Results) -> str:
    comparison = json.dumps(dict(results.comparison), indent=2, ensure_ascii=False, default=str)
    return (
        _definitions(facts_of(results), code=("command",))
        + "<details><summary>Every key of the comparison</summary>\n"
        + f"<pre>{html.escape(comparison)}</pre></details>\n"
        + f"<h3>Versions</h3>\n{_definitions(results.versions)}"
        + f"<h3>Machine</h3>\n{_definitions(results.machine)}"
    )


def _definitions(facts: Mapping[str, Any], code: tuple[str, ...] = ()) -> str:
    if not facts:
        return _paragraphs(["Not recorded."])
    lines = []
    for name, value in facts.items():
        text = html.escape("none" if value is None else str(value))
        lines.append(f"<dt>{html.escape(name)}</dt><dd>{f'<code>{text}</code>' if name in code else text}</dd>\n")
    return f"<dl>\n{''.join(lines)}</dl>\n"


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{html.escape(text)}</p>\n" for text in texts)
