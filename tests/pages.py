"""The pages of the documentation and the code blocks in them, as the parser that builds the pages sees them."""

from __future__ import annotations

import json
import random
import re
import shlex
import string
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.lab.conftest import byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the name on the pages; a folder of this name is taken before the hub
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        page: file name relative to the root.
        line: of its first line of code, from 1.
        language: after the fence; "" for a block without one.
        text: the code.
        not_run: the reason that a comment before it gives for not running it, or None.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All code blocks of all pages in these languages."""
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


def blocks_of(page: Path) -> list[Block]:
    found, reason = [], None
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            first = token.map[0] + (2 if token.type == "fence" else 1)
            found.append(Block(str(page.relative_to(ROOT)), first, token.info.strip(), token.content, reason))
        comment = NOT_RUN.match(token.content) if token.type == "html_block" else None
        reason = comment[1] if comment else None
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a block: a command ends with its line, unless that ends with a backslash."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def random_texts(count: int) -> list[str]:
    """Texts of many different letters, so that the tiny model's gradients have 2r singular directions."""
    source = random.Random(0)
    return ["".join(source.choices(string.ascii_letters + string.digits, k=40)) for _ in range(count)]


def build_workplace(folder: Path) -> None:
    """Writes what the pages speak of: the model under its name on the hub, tiny and random, and two files of rows."""
    tiny_model().save_pretrained(folder / MODEL)
    byte_tokenizer().save_pretrained(folder / MODEL)
    texts = random_texts(96)
    for name, part in (("train", texts[:64]), ("test", texts[64:])):
        rows = [{"question": f"{text[:20]}?", "answer": f" {text[20:]}"} for text in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
