"""Tests that an answer becomes the program it means, and that PASS@k is the estimate it claims to be."""

from __future__ import annotations

import itertools
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraga.lab.programs.humaneval import Problem, pass_at_k
from loraga.lab.programs.program import Limits
from tests.humaneval import needs_lock, needs_problems, rows

PROMPT = '''\
from typing import List


def poly(xs: List[int], x: int) -> int:
    return sum(c * x ** i for i, c in enumerate(xs))


def solve(xs: List[int], x: int) -> int:
    """Twice the polynomial.
    >>> solve([1, 2], 1)
    6
    """
'''
TEST = (
    "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2], 1) == 6\n    assert candidate([], 1) == 0\n"
)
PROBLEM = Problem("HumanEval/x", PROMPT, "    return 2 * poly(xs, x)\n", TEST, "solve")
WHOLE = "def solve(xs, x):\n    return 2 * poly(xs, x)"

RIGHT = {
    "the body": "    return 2 * poly(xs, x)\n",
    "the body without its first space": "return 2 * poly(xs, x)",
    "a body of several lines without its first space": "y = poly(xs, x)\n    return 2 * y",
    "a block without its first space": "if not xs:\n        return 0\n    return 2 * poly(xs, x)",
    "a body without any space": "y = 0\nfor _ in range(2):\n    y += poly(xs, x)\nreturn y",
    "a block without any space": "for factor in [2]:\n    y = factor * poly(xs, x)\nreturn y",
    "a dictionary without any space": "factors = {\n    1: 2,\n}\nreturn factors[1] * poly(xs, x)",
    "a body by tabs": "\tif not xs:\n\t\treturn 0\n\treturn 2 * poly(xs, x)",
    "a body with empty lines": "\n\n    y = poly(xs, x)\n\n    return 2 * y\n\n",
    "a body that goes on with another function": "    return 2 * poly(xs, x)\n\n\ndef main():\n    broken(\n",
    "a body that goes on with a class": "    return 2 * poly(xs, x)\n\nclass A:\n    broken(\n",
    "a body that goes on with a comment": "    return 2 * poly(xs, x)\n\n# Test (broken\n(",
    "a body that goes on with a print": "    return 2 * poly(xs, x)\nprint(solve(",
    "a body that goes on with main": "    return 2 * poly(xs, x)\n\nif __name__ == '__main__':\n    exit(",
    "a body and sentences": "    return 2 * poly(xs, x)\n\nThis doubles it.",
    "a body with lines at the beginning in a text": '    """\nnot indented\n    """\n    return 2 * poly(xs, x)\n',
    "the function": WHOLE,
    "the function and sentences": f"Here it is:\n\n{WHOLE}\n\nIt doubles the polynomial's value.\n",
    "the function and a call": f"{WHOLE}\n\nprint(solve([1, 2], 1)\n",
    "the function and main": f"{WHOLE}\n\nif __name__ == '__main__':\n    broken(\n",
    "the function before its helper": "def solve(xs, x):\n    return two() * poly(xs, x)\n\ndef two():\n    return 2",
    "the function with a constant before it": f"TWO: int = 2\n{WHOLE.replace('2 *', 'TWO *')}",
    "the function of many lines": "def solve(\n    xs,\n    x,\n):\n    return 2 * poly(xs, x)\n",
    "the function with a text": 'def solve(xs, x):\n    """\nSays\nmuch\n    """\n    return 2 * poly(xs, x)\n',
    "the whole prompt again": f"{PROMPT}    return 2 * poly(xs, x)\n",
    "a code block": f"Sure!\n```python\n{WHOLE}\n```\nIt doubles.\n",
    "a code block without a language": f"```\n{WHOLE}\n```",
    "a code block in a list": "1. First:\n   ```python\n" + textwrap.indent(WHOLE, "   ") + "\n   ```\n",
    "a code block that is cut off": f"```python\n{WHOLE}\n",
    "a code block that ends in a line": f"```python\n{WHOLE}```",
    "a code block of the body": "```python\n    return 2 * poly(xs, x)\n```",
    "a code block of the body without its space": "```python\nreturn 2 * poly(xs, x)\n```",
    "code blocks of several languages": f"```sh\npip install x\n```\n```python\n{WHOLE}\n```\n```py\nsolve(a\n```",
    "an example before the function": f"```python\nsolve([1], 2)\n```\nThis needs\n```python\n{WHOLE}\n```",
    "lines of Windows": f"```python\n{WHOLE}\n```".replace("\n", "\r\n"),
    "an import of the future": f"```python\nfrom __future__ import annotations\n{WHOLE}\n```",
    "what the standard library has": "```python\nimport operator\n"
    + WHOLE.replace("2 *", "operator.mul(1, 2) *")
    + "\n```",
    "an example that asks for input": f"```python\n{WHOLE}\nif __name__ == '__main__':\n    solve(input())\n```",
}
WRONG = {
    "nothing": "",
    "space": " \n\n",
    "sentences": "I am sorry, but I cannot.",
    "another result": WHOLE.replace("2 *", "3 *"),
    "another name": WHOLE.replace("solve", "solved"),
    "the prompt alone": PROMPT,
    "a half": "```python\ndef solve(xs, x):\n    return 2 * poly(",
    "a loop": "    while True:\n        pass\n",
    "a recursion": "    return solve(xs, x)\n",
    "memory": "    return bytearray(10**12)\n",
    "leaving": "    import sys\n    sys.exit(0)\n",
    "a file": "    open('/tmp/x', 'w')\n    return 6\n",
    "an exception": "    raise Exception\n",
    "a check of its own": f"{WHOLE.replace('2 *', '3 *')}\n\ndef check(candidate):\n    pass\n",
}


@needs_lock
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes_as(name):
    assert PROBLEM.run(RIGHT[name]).passed, PROBLEM.program(RIGHT[name])


@needs_lock
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_does_not_pass(name):
    assert not PROBLEM.run(WRONG[name], Limits(processor_seconds=1, seconds=5)).passed


def test_an_answer_ends_where_the_stop_sequences_of_humaneval_stand():
    for stop in ("\nclass", "\ndef", "\n#", "\nif", "\nprint"):
        answer = "    a = 1\n\n    return a\n"
        assert PROBLEM.program(f"{answer}{stop} x").rstrip() == (PROMPT + answer).rstrip()


@given(samples=st.integers(1, 8), data=st.data())
def test_pass_at_k_is_the_part_of_all_draws_that_hold_a_sample_that_passes(samples, data):
    passed = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@given(samples=st.integers(1, 500), data=st.data())
def test_pass_at_1_is_the_part_that_passes_and_a_larger_k_is_never_less(samples, data):
    passed = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    assert pass_at_k(samples, passed, 1) == pytest.approx(passed / samples, abs=1e-12)
    assert 0 <= pass_at_k(samples, passed, 1) <= pass_at_k(samples, passed, k) + 1e-12 <= 1 + 1e-12


@needs_lock
@needs_problems
def test_some_reference_solutions_pass_and_those_of_the_next_problem_do_not():
    problems = [Problem.of(row) for row in rows()]
    assert len(problems) == 164
    for problem, other in list(itertools.pairwise(problems))[::16]:
        assert problem.run(problem.canonical_solution).passed, problem.task_id
        assert not problem.run(other.canonical_solution).passed, problem.task_id
