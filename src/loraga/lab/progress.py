"""Progress on a console: a bar on a terminal, a line now and then elsewhere, both with the time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, Self

from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

SECONDS_BETWEEN_LINES = 15.0


class Progress(Protocol):
    """What is told how far long work is."""

    def begin(self, what: str, total: float, done: float) -> None:
        """A part of the work begins, of which an earlier call may have done some.

        Args:
            what: its name.
            total: all of it, in steps or rows.
            done: what is done of it.
        """

    def advance(self, work: float, note: str) -> None:
        """Some of the part was just done.

        Args:
            work: how much.
            note: what is going on.
        """


class WorkProgress:
    """Counts work done and says how long the rest takes at the pace so far.

    Args:
        console: where it is shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = self._done = self._counted = 0.0
        self._pace: float | None = None
        self._began = time.monotonic()
        self._last_line = float("-inf")
        self._last_note = ""
        self._bar = Bar(
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str, total: float, done: float = 0.0, seconds_per_unit: float | None = None) -> None:
        """Work begins, of which an earlier call may have done some.

        Args:
            what: its name.
            total: all of it, in any unit.
            done: what is done of it, which says nothing about the pace.
            seconds_per_unit: the pace before there is one of its own; None if nobody knows.
        """
        self._total, self._done, self._counted, self._pace = total, done, 0.0, seconds_per_unit
        self._began = time.monotonic()
        self._show(f"{what}: done before" if done else what)

    def skip(self, work: float, note: str) -> None:
        """Counts work that an earlier call did, which says nothing about the pace.

        Args:
            work: how much, in the unit of the total.
            note: what is going on.
        """
        self._done += work
        self._show(note)

    def advance(self, work: float, note: str) -> None:
        """Counts work that was just done.

        Args:
            work: how much, in the unit of the total.
            note: what is going on.
        """
        self._done += work
        self._counted += work
        self._show(note)

    def update(self, total: float, done: float, note: str) -> None:
        """Says where the work stands; more of it may have turned up.

        Args:
            total: all of it, in the unit of the total.
            done: what is done of it.
            note: what is going on.
        """
        self._counted += done - self._done
        self._total, self._done = total, done
        self._show(note)

    def time_left(self) -> str:
        """The time for the rest at the pace so far, in words; empty while nobody knows."""
        if self._counted > 0:
            self._pace = (time.monotonic() - self._began) / self._counted
        return "" if self._pace is None else f"{spoken((self._total - self._done) * self._pace)} left"

    def _show(self, note: str) -> None:
        self._bar.update(self._task, total=self._total, completed=self._done, description=note, left=self.time_left())
        now = time.monotonic()
        another_part = note.split(":")[0] != self._last_note.split(":")[0]
        if self._console.is_terminal or not (another_part or now - self._last_line >= SECONDS_BETWEEN_LINES):
            return
        self._last_line, self._last_note = now, note
        percent = round(100 * self._done / self._total) if self._total else 0
        parts = (f"{percent:3d} %", self.time_left(), note)
        self._console.print("  ".join(part for part in parts if part), highlight=False, markup=False)


def spoken(seconds: float) -> str:
    """A time as people say it: "45 s", "3 min 20 s"."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
