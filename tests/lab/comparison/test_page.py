import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from loraga.lab.comparison.figures import picture_bytes, pictures_of
from loraga.lab.comparison.page import lead, page
from loraga.lab.comparison.tables import tables_of
from tests.lab.comparison.synthetic import synthetic_results

RESULTS = synthetic_results(rows=12, steps=12)
ALONE = {"meta", "img", "link", "br", "hr", "input"}  # elements without an end


class Page(HTMLParser):
    """The page's elements and text; an element that is closed in the wrong place is an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ALONE:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(results):
    pictures = [(each, picture_bytes(each.figure, "svg")) for each in pictures_of(results)[-1:]]
    return Page(page(results, tables_of(results), pictures))


@pytest.fixture(scope="module")
def shown():
    return page_of(RESULTS)


def test_everything_is_on_one_page(shown):
    for text in (
        RESULTS.title,
        RESULTS.command,
        "smollm2-135m-instruct",
        "sums of three numbers",
        "2.13.0",
        "x86_64",
        "12 methods, 3 seeds, 228 of 234 runs done",
        "no space left on device",
        "the loss at step 20 is nan",
        "the spread is a rough guess",
        "How to read this",
        '"max_steps": 12',
    ):
        assert text in shown.text, text
    assert [table["id"] for table in shown.all("table")] == [table.name for table in tables_of(RESULTS)]


def test_nothing_is_loaded_and_nothing_is_run(shown):
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in shown.elements}
    for tag, attributes in shown.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    text = page(RESULTS, (), ())
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_links_lead_to_places_on_the_page(shown):
    places = {attributes["id"] for _, attributes in shown.elements if "id" in attributes}
    links = [attributes["href"].removeprefix("#") for attributes in shown.all("a")]
    assert len(links) == 4
    assert set(links) <= places


def test_pictures_are_inside_and_described(shown):
    (image,) = shown.all("img")
    content = base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))
    assert content.startswith(b"<?xml")
    assert image["alt"] == "Test accuracy by rank, at each method's best learning rate"


def test_it_fits_a_phone(shown):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in shown.all("meta")
    assert len([each for each in shown.all("div") if each.get("class") == "wide"]) == len(shown.all("table"))


def test_rows_and_columns_have_headings(shown):
    assert {each["scope"] for each in shown.all("th")} == {"row", "col"}
    assert re.search(r'<html lang="en">', page(RESULTS, (), ()))


def test_nasty_names_are_shown_as_they_are():
    nasty = "</style><script>alert('&')</script>"
    results = replace(
        RESULTS,
        title=nasty,
        model=nasty,
        command=nasty,
        versions={nasty: nasty},
        machine={nasty: nasty},
        comparison={nasty: nasty},
        runs=tuple(replace(run, variant=nasty, problem=nasty) for run in RESULTS.runs[:3]),
        best=(),
    )
    found = page_of_text(results)
    assert found.text.count(nasty) > 10
    assert not found.all("script")


def page_of_text(results):
    return Page(page(results, tables_of(results), ()))


def test_a_comparison_that_has_not_begun_has_a_page_that_says_so():
    found = page_of_text(replace(RESULTS, runs=(), best=(), versions={}, machine={}))
    assert "No run is there yet." in found.text
    assert "No run to draw yet." in found.text
    assert "Not recorded." in found.text


def test_one_seed_is_one_seed():
    assert "1 seed," in lead(replace(RESULTS, runs=RESULTS.runs[:1]))
