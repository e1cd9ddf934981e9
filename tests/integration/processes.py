"""Runs functions of this package in fresh processes, with or without loraga."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Processes:
    """Jobs are functions of `tests.integration.jobs`, with arguments that JSON can carry."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._process: subprocess.Popen | None = None
        self._count = 0

    def run(self, function: str, *, without_loraga: bool = False, **arguments: object) -> None:
        """Runs one job and fails with its output if it fails."""
        [status] = self.statuses(function, [arguments], without_loraga)
        assert status == 0, self.output()

    def status(self, function: str, **arguments: object) -> int:
        """Runs one job and gives its exit status, minus the signal's number if one ended it."""
        return self.statuses(function, [arguments])[0]

    def statuses(self, function: str, arguments: list[dict], without_loraga: bool = False) -> list[int]:
        """Runs the same job several times at once."""
        self._count += 1
        jobs = [
            {
                "function": f"tests.integration.jobs:{function}",
                "arguments": each,
                "without_loraga": without_loraga,
                "log": str(self.logs / f"{self._count}-{rank}.log"),
            }
            for rank, each in enumerate(arguments)
        ]
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.zygote"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self._process.stdin.write(json.dumps(jobs, default=str) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that starts the others has ended"
        return json.loads(answer)

    def output(self) -> str:
        """What the last jobs wrote."""
        return "\n".join(path.read_text()[-6000:] for path in sorted(self.logs.glob(f"{self._count}-*.log")))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()  # an orderly end takes seconds
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
