"""Tests that code blocks are found in Markdown as language models write it."""

from __future__ import annotations

import pytest

from loraga.lab.programs.code_blocks import code_blocks


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no code", []),
        ("`inline` and ```inline too```", []),
        ("```\na\n```", [("", "a\n")]),
        ("``` Python title=x\na\n```\nend", [("python", "a\n")]),
        ("```c++\na\n```\n```py\nb\n\nc\n```", [("c++", "a\n"), ("py", "b\n\nc\n")]),
        ("1. so:\n   ```python\n   if a:\n       b\n   ```\n", [("python", "if a:\n    b\n")]),
        ("```python\nreturn x```\nmore", [("python", "return x")]),
        ("```python\ncut of", [("python", "cut of")]),
        ("```python\n", [("python", "")]),
        ("```", []),
        ("Code: ```python\na\n```\n", [("python", "a\n")]),
        ("```" + "a" * 100_000, []),
        ("a ```b``` c\nd\n", []),
        ("a ```b``` ```c``` \nd\n", []),
    ],
)
def test_blocks(text, found):
    assert [(block.language, block.code) for block in code_blocks(text)] == found


def test_a_block_says_where_the_text_goes_on():
    text = "x\n```\na\n``` and more"
    assert [text[block.end :] for block in code_blocks(text)] == [" and more"]
    assert [block.end for block in code_blocks("```\na")] == [None]
