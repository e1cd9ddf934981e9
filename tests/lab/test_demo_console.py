import io
import re

import pytest
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from loraga.lab.demo_console import show_demo

from .conftest import use_tiny_model


def run(folder):
    stream = io.StringIO()
    console = Console(file=stream, width=110)
    outcome = show_demo(folder / "out", steps=60, seed=0, quick=True, console=console)
    return stream.getvalue(), outcome


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_model(patch, folder)
        yield *run(folder), folder


def test_console_says_first_what_it_will_do(shown):
    text, *_ = shown

    before = text[: text.index(" %  ")]
    assert "SmolLM2-135M-Instruct" in before
    assert re.search(r"runs of 4 steps with 4 questions", before)
    assert "gamma=4096" in before


def test_console_says_how_much_time_is_left(shown):
    text, *_ = shown

    assert re.search(r"\d+ %  \d+ s left  LoRA at ", text)


def test_table_holds_every_row_and_number(shown):
    text, outcome, _ = shown

    for row in outcome.rows:
        assert f"{row.loss:.3f}" in text
        if row.learning_rate:
            assert f"{row.learning_rate:g} ({row.rate_kind})" in text
    assert "A smoke run" in text


def test_printed_lines_load_the_adapter_with_plain_peft(shown):
    text, outcome, _ = shown

    base_folder = re.search(r'AutoModelForCausalLM.from_pretrained\("(.*)"\)', text).group(1)
    adapter = re.search(r'PeftModel.from_pretrained\(base, "(.*)"\)', text).group(1)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), adapter)
    assert model.active_peft_config.r == 16  # twice the trained rank
    assert str(outcome.picture) in text


def test_a_finished_demo_shows_its_table_again_without_training(shown):
    _, outcome, folder = shown
    kept = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("log.jsonl")}

    text, again = run(folder)

    assert again == outcome
    assert "held-out" in text
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
