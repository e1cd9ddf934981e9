"""A process that has imported the libraries and forks one fresh process for each job; see `processes.py`.

Importing costs seconds and forking milliseconds. Nothing but importing is done here, so each fork starts from the state
that a new interpreter has after its imports. `loraga` itself is never imported here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import json
import os
import signal
import sys
import traceback

import accelerate  # noqa: F401
import peft  # noqa: F401
import torch
import transformers
from transformers import LlamaForCausalLM, Trainer, TrainingArguments  # noqa: F401

import tests.models  # noqa: F401

LIMIT_SECONDS = 180


class NoLoraga(importlib.abc.MetaPathFinder):
    """Stands before all other finders and makes `import loraga` fail."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "loraga":
            raise ModuleNotFoundError("loraga is not installed here", name=fullname)


def run(job: dict) -> None:
    """Runs one job in this process, a fork, and ends it."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.alarm(LIMIT_SECONDS)
    status = 1
    try:
        assert "loraga" not in sys.modules
        if job["without_loraga"]:
            sys.meta_path.insert(0, NoLoraga())
        module, _, function = job["function"].partition(":")
        getattr(importlib.import_module(module), function)(**job["arguments"])
        assert not (job["without_loraga"] and "loraga" in sys.modules)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        jobs = json.loads(line)
        pids = []
        for job in jobs:
            pid = os.fork()
            if pid == 0:
                run(job)
            pids.append(pid)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        answers.write(json.dumps(statuses) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
