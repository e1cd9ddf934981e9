"""HumanEval (Chen et al. 2021, arXiv 2107.03374): from an answer to a program, and from programs that pass to PASS@k.

answer --its code block, or all of it--> a whole function or the body of one --behind the prompt--> program
"""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .code_blocks import code_blocks
from .program import Limits, Ran, run_program

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
PYTHON = ("python", "python3", "py", "")
INDENT = "    "


@dataclass(frozen=True)
class Problem:
    """One problem of HumanEval, in its columns' words.

    Attributes:
        task_id: such as "HumanEval/0".
        prompt: imports, helpers, and the function up to the end of its docstring; a program by itself.
        canonical_solution: the body that goes on there.
        test: defines `check(candidate)`.
        entry_point: the function's name.
    """

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Problem:
        """The problem in a row."""
        return cls(**{column: str(row[column]) for column in COLUMNS})

    def program(self, answer: str) -> str:
        """The program that an answer means.

        Args:
            answer: the function, in a code block or not, with text around it or not; or what follows the prompt.

        Returns:
            The prompt, with the function or its body behind it.
        """
        text = answer.replace("\r\n", "\n")
        blocks = code_blocks(text)
        defining = [each.code for each in blocks if self._defined_in(each.code)]
        python = [each.code for each in blocks if each.language in PYTHON]
        code = next(iter([*defining, *python, *(each.code for each in blocks)]), text)
        if not self._defined_in(code):
            return self.prompt + body(code)
        future, code = _without_future_imports(code if blocks else definitions(code))
        return f"{future}{self.prompt}\n{code}"

    def run(self, answer: str, limits: Limits | None = None) -> Ran:
        """Runs the program of an answer with the problem's tests."""
        return run_program(self.program(answer), f"{self.test}\n\ncheck({self.entry_point})\n", limits)

    def _defined_in(self, code: str) -> bool:
        return re.search(rf"^[ \t]*(async\s+)?def\s+{re.escape(self.entry_point)}\s*\(", code, re.MULTILINE) is not None


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The unbiased estimate of the probability that one of k samples passes: 1 - C(n-c, k) / C(n, k) (section 2.1).

    Args:
        samples: n, of one problem.
        passed: c, how many of them passed, from 0 to n.
        k: from 1 to n.

    Returns:
        The part of all sets of k among the n samples that hold one that passed.
    """
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)


def body(text: str) -> str:
    """A function's body as it follows the prompt: indented, and cut off where the function ends.

    Args:
        text: a completion; the space before its first line may be lost, or before all of its lines.

    Returns:
        Its lines up to the first that is not indented: HumanEval's stop sequences (a class, a function, a comment, an
        `if` or a `print` at a line's beginning) are such lines.
    """
    lines = [_with_spaces(line) for line in text.strip("\n").rstrip().split("\n")]
    rest = [line for line in lines[1:] if line.strip()]
    if not lines[0].startswith(" "):
        deeper = lines[0].rstrip().endswith((":", "(", "[", "{", ",", "\\"))  # what belongs to it follows, further in
        if not rest or _indentation(rest[0]) > (len(INDENT) if deeper else 0):
            lines[0] = INDENT + lines[0]
        else:
            lines = textwrap.indent("\n".join(lines), INDENT).split("\n")
    return "\n".join(_until(lines, lambda line: line[0] != " ")) + "\n"


def definitions(text: str) -> str:
    """The code of an answer that is no code block: from its first line of code to the first that is none.

    Args:
        text: an answer that defines a function, with sentences before and after it.

    Returns:
        Imports, assignments, functions and classes; the calls that follow them are left out.
    """
    lines = text.split("\n")
    first = next((index for index, line in enumerate(lines) if _STATEMENT.match(line)), 0)
    return "\n".join(_until(lines[first:], lambda line: line[0] not in " \t#)]}" and not _STATEMENT.match(line))) + "\n"


_STATEMENT = re.compile(r"(from\s+\S+\s+import|import|(async\s+)?def|class)\s|@\w|\w+\s*(:[^=]+)?=[^=]")
_FUTURE = re.compile(r"^from\s+__future__\s+import\s[^\n]*\n?", re.MULTILINE)


def _until(lines: list[str], ends: Callable[[str], bool]) -> list[str]:
    """The lines before the first that ends them, where that is no line inside a text of three quotes."""
    kept: list[str] = []
    inside = False
    for line in lines:
        if line.strip() and not inside and ends(line):
            break
        inside ^= (line.count('"""') + line.count("'''")) % 2 == 1
        kept.append(line)
    return kept


def _without_future_imports(code: str) -> tuple[str, str]:
    """Those have to stand before the prompt."""
    return "".join(f"{each.strip()}\n" for each in _FUTURE.findall(code)), _FUTURE.sub("", code)


def _with_spaces(line: str) -> str:
    """A line indented by spaces, as the prompt is: Python refuses to mix them with tabs."""
    rest = line.lstrip(" \t")
    return line[: len(line) - len(rest)].expandtabs(len(INDENT)) + rest


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
