"""Every Python block of the pages runs, with the real libraries on a tiny random model."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

import loraga
from loraga import errors
from tests.lab.conftest import tiny_model
from tests.pages import MODEL, PAGES, ROOT, blocks, blocks_of, build_workplace, random_texts

LANGUAGES = ("", "python", "bash", "yaml", "text")
# What does not run, and why, as the page itself says it.
NOT_RUN = [
    ("docs/other-tools.md", "a file of LLaMA-Factory, which is not among the tests' packages"),
    ("docs/other-tools.md", "a file of axolotl, which is not among the tests' packages"),
    ("docs/other-tools.md", "vLLM is not among the tests' packages"),
    ("docs/rescue.md", "it takes an adapter that PEFT trained"),
    ("docs/saving.md", "vLLM is not among the tests' packages"),
]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_workplace(tmp_path)


def given():
    """What the pages take as given, new each time: a base model, its tokenizer, and batches as a DataLoader yields."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def collate(texts):
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    loader = DataLoader(random_texts(64), batch_size=4, collate_fn=collate)
    return {"base": tiny_model(), "tokenizer": tokenizer, "batches": loader}


# TRL 1.16.0 passes its default by a name that transformers 5.23 has deprecated
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks_of(page))], ids=lambda page: page.name
)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, workplace):
    names, lent = {"__name__": page.stem}, {}
    for block in blocks_of(page):
        if block.language == "python" and not block.not_run:
            fresh = given()
            names |= {name: fresh[name] for name in fresh if names.get(name) is lent.get(name)}
            lent = fresh
            code = "\n" * (block.line - 1) + block.text  # so that a traceback shows the line of the page
            exec(compile(code, page, "exec"), names)


def test_a_block_that_is_not_run_says_why_on_its_page():
    assert [(block.page, block.not_run) for block in blocks(*LANGUAGES) if block.not_run] == NOT_RUN


def test_every_block_has_a_language_that_is_tested_or_is_no_code():
    found = [block for page in PAGES for block in blocks_of(page)]

    assert [block.place for block in found if block.language not in LANGUAGES] == []
    plain = [block for block in found if block.language in ("", "text")]
    assert [b.place for b in plain if re.search(r"^\s*(loraga|make|pip|python3?|import|from) ", b.text, re.M)] == []


def test_no_formula_has_an_escape_that_github_would_take_away():
    """Between dollars GitHub reads a backslash before punctuation as Markdown does, and the formula does not get it."""
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, re.DOTALL)
        assert [formula for formula in formulas if re.search(r"\\[^a-zA-Z\s]", formula)] == [], page.name


def test_the_reference_has_every_public_name_once():
    page = (ROOT / "docs" / "reference.rst").read_text(encoding="utf-8")

    assert sorted(re.findall(r"^\.\. auto\w+:: loraga\.(\w+)$", page, re.M)) == sorted(
        name for name in loraga.__all__ if name != "__version__"
    )


def rows_of_errors(heading):
    """The rows of the tables under a heading of errors.md, without their heads."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    text = re.split(r"\n## ", text)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] not in ("class", "message") and not row[0].startswith("---")]


def test_the_page_of_errors_has_a_remedy_for_each_class():
    kinds = [name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)]
    rows = rows_of_errors("The classes")

    assert [row[0].split("`")[1] for row in rows] == kinds
    assert all(len(row) == 3 and all(row) for row in rows)


def texts_of_the_library():
    """Every text in the library's code, joined as Python joins it, with {} for a value that is filled in."""
    for path in (ROOT / "src" / "loraga").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_on_the_page_of_errors_is_one_that_the_library_gives():
    texts = list(texts_of_the_library())
    messages = [row[0].removesuffix(" (a warning)") for row in rows_of_errors("Common messages")]
    ours = [message for message in messages if "(PEFT's own" not in message]

    assert len(ours) >= 30
    for message in ours:
        pattern = re.compile(".+?".join(re.escape(part) for part in message.split("...")), re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


def test_the_pages_are_there():
    assert len(PAGES) >= 12
    assert {page.name for page in PAGES} >= {"README.md", "quick-start.md", "errors.md"}
