"""All of HumanEval: the reference solutions pass, in each form that an answer may have, and wrong ones do not."""

from __future__ import annotations

import pytest

from loraga.lab.programs.humaneval import Problem
from loraga.lab.programs.program import Limits
from tests.humaneval import needs_lock, needs_problems, rows

pytestmark = [
    pytest.mark.torture,
    needs_problems,
    needs_lock,
]

FORMS = {
    "the body": lambda problem: problem.canonical_solution,
    "the body without its first space": lambda problem: problem.canonical_solution.strip(),
    "the body and more": lambda problem: f"{problem.canonical_solution}\n\ndef main():\n    x = (\n",
    "a code block": lambda problem: f"So:\n```python\n{problem.prompt}{problem.canonical_solution}```\nIt ends.",
    "a code block of the body": lambda problem: f"```\n{problem.canonical_solution}```",
    "the function and sentences": lambda problem: f"{problem.prompt}{problem.canonical_solution}\nIt ends.\nprint(x",
}
WRONG = {
    "nothing": "",
    "nothing returned": "    pass\n",
    "an exception": "    raise ValueError\n",
    "leaving": "    import os\n    os._exit(0)\n",
    "leaving as if it had passed": "    raise SystemExit(0)\n",
    "a fork": "    import os\n    os.fork()\n",
    "a file": "    return open('/etc/passwd').read()\n",
    "a socket": "    import socket\n    return socket.socket()\n",
    "memory": "    return bytearray(10**12)\n",
    "a loop": "    while True: pass\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_all_164_reference_solutions_pass_as(form):
    problems = [Problem.of(row) for row in rows()]
    passed = [problem.task_id for problem in problems if problem.run(FORMS[form](problem)).passed]
    assert passed == [f"HumanEval/{number}" for number in range(164)]


@pytest.mark.parametrize("wrong", WRONG)
def test_no_problem_is_solved_by(wrong):
    problems = [Problem.of(row) for row in rows()][::16]
    limits = Limits(processor_seconds=1, seconds=5)
    assert not [problem.task_id for problem in problems if problem.run(WRONG[wrong], limits).passed]
