import io

import pytest
from rich.console import Console

from loraga.lab import progress
from loraga.lab.progress import WorkProgress, spoken


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def work(clock, stream):
    with WorkProgress(Console(file=stream, width=100)) as work:
        yield work


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7261, "121 min 01 s")],
)
def test_times_are_spoken(seconds, text):
    assert spoken(seconds) == text


def test_while_nobody_knows_the_pace_no_time_is_said(work, stream):
    work.begin("training", 10)

    assert work.time_left() == ""
    assert stream.getvalue().strip() == "0 %  training"


def test_time_left_follows_the_pace_of_the_work_done_here(work, clock):
    work.begin("training", 100)
    clock.now += 20
    work.advance(10, "training")
    assert work.time_left() == "3 min 00 s left"
    clock.now += 10
    work.advance(20, "training")
    assert work.time_left() == "1 min 10 s left"


def test_work_that_was_done_before_says_nothing_about_the_pace(work, clock):
    work.begin("training", 100, done=80, seconds_per_unit=None)
    assert work.time_left() == ""
    clock.now += 30
    work.advance(10, "training")

    assert work.time_left() == "30 s left"


def test_a_pace_that_is_known_before_is_used_until_there_is_one(work, clock):
    work.begin("training", 100, seconds_per_unit=1.0)
    assert work.time_left() == "1 min 40 s left"
    work.skip(50, "training")
    assert work.time_left() == "50 s left"
    clock.now += 20
    work.advance(10, "training")
    assert work.time_left() == "1 min 20 s left"


def test_another_part_has_a_pace_of_its_own(work, clock):
    work.begin("training", 10)
    clock.now += 10
    work.advance(10, "training")
    work.begin("evaluation", 4)
    assert work.time_left() == ""
    clock.now += 3
    work.advance(1, "evaluation")

    assert work.time_left() == "9 s left"


def test_without_a_terminal_a_line_comes_now_and_then_and_at_each_new_part(work, clock, stream):
    work.begin("LoRA", 10, seconds_per_unit=1.0)
    for step in range(4):
        clock.now += 1
        work.advance(1, f"LoRA: step {step}")
    clock.now += progress.SECONDS_BETWEEN_LINES
    work.advance(1, "LoRA: step 4")
    work.advance(1, "LoRA-GA: step 0")

    lines = stream.getvalue().splitlines()
    assert [line.rpartition("left  ")[2] for line in lines] == ["LoRA", "LoRA: step 4", "LoRA-GA: step 0"]
    assert [line.split()[0] for line in lines] == ["0", "50", "60"]


def test_a_line_has_percent_time_left_and_note(work, clock, stream):
    work.begin("training", 8, done=2)
    clock.now += progress.SECONDS_BETWEEN_LINES
    work.advance(1, "training: step 3 of 8, loss 1.234")

    assert stream.getvalue().splitlines() == [
        " 25 %  training: done before",
        " 38 %  1 min 15 s left  training: step 3 of 8, loss 1.234",
    ]


def test_work_of_no_size_is_shown_all_the_same(work, stream):
    work.begin("evaluation", 0)

    assert stream.getvalue() == "  0 %  evaluation\n"


def test_brackets_in_a_note_are_text(work, stream):
    work.begin("rows [/of] [bold]a.jsonl", 3)

    assert "rows [/of] [bold]a.jsonl" in stream.getvalue()


def test_on_a_terminal_there_is_one_bar_that_goes_away(clock):
    stream = io.StringIO()
    with WorkProgress(Console(file=stream, width=100, force_terminal=True, color_system=None)) as work:
        work.begin("training", 4)
        clock.now += 100
        work.advance(3, "training: step 3")
        work.advance(1, "training: step 4")

    shown = stream.getvalue()
    assert "100%" in shown
    assert "training: step 4" in shown
    assert " 75 %" not in shown  # no line of the other kind
    assert shown.endswith("\x1b[2K")  # its line is erased
