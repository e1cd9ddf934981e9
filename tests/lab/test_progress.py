import io

import pytest
from rich.console import Console

from loraga.lab import progress
from loraga.lab.progress import WorkProgress, spoken


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s")])
def test_times_are_spoken(seconds, text):
    assert spoken(seconds) == text


def test_time_left_follows_the_pace_of_the_work_done_here(clock):
    with WorkProgress(Console(file=io.StringIO()), total=100, seconds_per_unit=1.0) as work:
        assert work.time_left() == "1 min 40 s"
        work.skip(50)
        assert work.time_left() == "50 s"
        clock.now += 20
        work.advance(10, "training")
        assert work.time_left() == "1 min 20 s"


def test_without_a_terminal_a_line_comes_now_and_then_and_at_each_new_part(clock):
    stream = io.StringIO()
    with WorkProgress(Console(file=stream, width=100), total=10, seconds_per_unit=1.0) as work:
        for step in range(4):
            clock.now += 1
            work.advance(1, f"LoRA: step {step}")
        clock.now += progress.SECONDS_BETWEEN_LINES
        work.advance(1, "LoRA: step 4")
        work.advance(1, "LoRA-GA: step 0")

    lines = stream.getvalue().splitlines()
    assert [line.rpartition("left  ")[2] for line in lines] == ["LoRA: step 0", "LoRA: step 4", "LoRA-GA: step 0"]
    assert [line.split()[0] for line in lines] == ["10", "50", "60"]
