"""Help is there at once: nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loraga.cli import COMMANDS
from loraga.lab.recipe_check import OWN_KEYS

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "matplotlib", "numpy", "rich")


def loraga(*words, options=()):
    return subprocess.run(
        [sys.executable, *options, "-m", "loraga.cli", *words], capture_output=True, text=True, timeout=60, check=True
    )


@pytest.mark.parametrize("words", [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)])
def test_help_imports_nothing_heavy(words):
    # -X importtime writes a line for each import to stderr
    imported = loraga(*words, options=("-X", "importtime")).stderr

    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in imported.splitlines()}
    assert "loraga" in names
    assert not names & {*HEAVY}


def test_train_help_lists_every_key_with_its_default():
    text = " ".join(loraga("train", "--help").stdout.split())

    for key in OWN_KEYS:
        assert f"--{key.replace('_', '-')} VALUE" in text
    assert "default lora_ga" in text


def test_completion_knows_the_commands_and_the_keys():
    script = loraga("completion", "bash").stdout

    for name in COMMANDS:
        assert name in script
    assert "--gradient-batches" in script
    assert "--residual" in script
    assert "--allow-rounding" in script


def test_init_help_says_what_the_two_starts_for_other_tools_are():
    text = " ".join(loraga("init", "--help").stdout.split())

    assert "write the base model with the start subtracted" in text
    assert "method=mirrored needs no other base model; docs/other-tools.md" in text
