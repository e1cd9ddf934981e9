"""Fenced code blocks in Markdown, as language models answer."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

_OPENING = re.compile(
    r"^(?P<indent>[ \t]*)```(?P<info>[^\n`]*)\n"
    r"|(?<=[ :])```(?P<within>\w[^\s`]*)[ \t]*\n",  # behind a sentence, with a language: no end of inline code
    re.MULTILINE,
)
FENCE = "```"


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        language: what the opening fence says, in small letters; may be empty.
        code: what is inside; dedented if the fence is indented, as in a list.
        end: where the text goes on after the closing fence; None if there is none.
    """

    language: str
    code: str
    end: int | None


def code_blocks(text: str) -> list[Block]:
    """All code blocks of a text, in order; the last may be left open, by an answer that was cut off.

    A block ends at the next fence, at a line's beginning or not: models write `return x` and the fence in one line.
    """
    found = []
    opening = _OPENING.search(text)
    while opening:
        close = text.find(FENCE, opening.end())
        end = len(text) if close < 0 else close
        code = text[opening.end() : end]
        found.append(
            Block(
                next(iter((opening["info"] or opening["within"] or "").lower().split()), ""),
                textwrap.dedent(code) if opening["indent"] else code,
                None if close < 0 else close + len(FENCE),
            )
        )
        opening = _OPENING.search(text, end + len(FENCE))
    return found
