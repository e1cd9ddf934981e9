import io
import re

import pytest
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from loraga.lab import demo_console

from .conftest import use_tiny_model


def run(folder):
    stream = io.StringIO()
    outcome = demo_console.run(
        folder / "out", steps=60, seed=0, quick_run=True, console=Console(file=stream, width=demo_console.WIDTH)
    )
    return stream.getvalue(), outcome


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_model(patch, folder)
        return *run(folder), folder


def test_console_says_first_what_it_will_do_and_how_long_it_takes(shown):
    text, *_ = shown

    before = text[: text.index(" left  ")]
    assert "SmolLM2-135M-Instruct" in before
    assert re.search(r"runs of 4 steps with 4 questions", before)
    assert re.search(r"A step takes \d+\.\d s here, the rest about \d+", before)


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


def test_a_finished_demo_shows_its_table_again_without_training(shown, monkeypatch):
    _, outcome, folder = shown
    use_tiny_model(monkeypatch, folder)
    monkeypatch.setattr("loraga.lab.experiment.train", lambda *args: pytest.fail("trained again"))
    monkeypatch.setattr(demo_console, "time_one_step", lambda experiment: pytest.fail("timed again"))

    text, again = run(folder)

    assert again == outcome
    assert "held-out" in text
