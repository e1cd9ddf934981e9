import csv
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from loraga.lab.comparison.table import Cell, Column, Table, as_csv, as_html, as_latex, as_markdown

NASTY = [
    "<b>bold</b>",
    "a & b",
    "under_score_d",
    "100 %",
    "a|b",
    "a\\|b",
    "*x* **y**",
    "[link](http://example.org)",
    "`code`",
    "$x^2$",
    "#1",
    "{brace}",
    "~strike~",
    '"quoted", with a comma',
    "<script>alert(1)</script>",
    "![picture](x.png)",
    "\\",
    "&amp;",
]
VISIBLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)


def table(*texts):
    columns = (Column("name", ("name",), is_number=False), Column("score (%)", ("mean", "std")))
    rows = tuple((Cell(text, (text,)), Cell("1.0 ± 0.5", (1.0123456789, 0.5))) for text in texts)
    return Table("best", "a title", columns, rows, ("a note & more",))


class Cells(HTMLParser):
    """The texts of a table's cells, and the elements that the page has."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.rows[-1][-1] += data


def shown_by_markdown(text):
    """As a reader of GitHub's Markdown shows it."""
    return Cells(MarkdownIt("gfm-like", {"linkify": False}).render(as_markdown(table(text))))


@pytest.mark.parametrize("text", NASTY)
def test_markdown_shows_every_text_as_it_is(text):
    shown = shown_by_markdown(text)
    assert shown.rows == [["name", "score (%)"], [text, "1.0 ± 0.5"]]
    assert not {"em", "strong", "a", "code", "s", "b", "script", "img"} & set(shown.tags)


@given(VISIBLE)
def test_markdown_shows_any_text_as_it_is(text):
    assert shown_by_markdown(text).rows[1][0] == text


@given(VISIBLE)
def test_html_shows_any_text_as_it_is(text):
    assert Cells(as_html(table(text))).rows[1][0] == text


def full_of(text):
    columns = (Column(text, ("name",), is_number=False), Column(text, ("score",)))
    return Table("best", text, columns, ((Cell(text, (text,)), Cell(text, (1.0,))),), (text,))


@pytest.mark.parametrize("text", NASTY)
def test_html_takes_no_text_for_an_element_wherever_it_stands(text):
    shown = Cells(as_html(full_of(text)))
    assert shown.tags == Cells(as_html(full_of("plain"))).tags
    assert shown.rows == [[text, text], [text, text]]


@pytest.mark.parametrize("text", [*NASTY, "two\nlines"])
def test_csv_holds_the_numbers_unrounded_under_their_names(text):
    rows = list(csv.reader(io.StringIO(as_csv(table(text)))))
    assert rows == [["name", "mean", "std"], [text, "1.0123456789", "0.5"]]


LATEX = {
    r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_", r"\{": "{", r"\}": "}", r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<", r"\textgreater{}": ">",
    r"\textbar{}": "|", r"$\pm$": "±", "{*}": "*", "{[}": "[", "{]}": "]",
}  # fmt: skip


def shown_by_latex(text):
    """What the few commands that are used here are set as; anything else with a meaning to LaTeX fails."""
    pattern = re.compile("|".join(map(re.escape, sorted(LATEX, key=len, reverse=True))))
    assert not re.search(r"[\\&%$#_{}~^]", pattern.sub("", text)), text
    return pattern.sub(lambda found: LATEX[found.group()], text)


@given(VISIBLE)
def test_latex_shows_any_text_as_it_is(text):
    (row,) = [line for line in as_latex(table(text)).splitlines() if line.endswith(r"$\pm$ 0.5 \\")]
    assert shown_by_latex(row.removesuffix(r" & 1.0 $\pm$ 0.5 \\")) == text


def test_no_row_of_latex_begins_with_the_option_of_the_row_before():
    assert not re.search(r"\\\\\s*(\[|\*)", as_latex(table("[2pt] of space", "*", "[x]")))


def test_latex_has_booktabs_rules_a_caption_and_the_notes():
    text = as_latex(table("LoRA"))
    assert re.findall(r"\\(?:top|mid|bottom)rule", text) == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\begin{tabular}{lr}" in text
    assert r"\caption{a title}" in text
    assert r"a note \& more" in text
    assert text.count("{") == text.count("}")


def test_a_text_of_several_lines_stays_in_its_row():
    for form in (as_markdown, as_latex):
        assert "two lines" in form(table("two\nlines"))


def test_a_table_can_be_reduced_to_some_columns():
    reduced = table("LoRA").only({"score (%)"})
    assert [column.heading for column in reduced.columns] == ["score (%)"]
    assert [[cell.text for cell in row] for row in reduced.rows] == [["1.0 ± 0.5"]]
    assert reduced.notes == table("LoRA").notes
