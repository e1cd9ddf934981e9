"""Progress on a console: a bar on a terminal, a line now and then elsewhere, both with the time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

SECONDS_BETWEEN_LINES = 15.0


class WorkProgress:
    """Counts work done and says how long the rest takes at the pace so far.

    Args:
        console: where it is shown.
        total: all the work, in any unit.
        seconds_per_unit: the pace before there is one of its own.
    """

    def __init__(self, console: Console, total: float, seconds_per_unit: float) -> None:
        self._console = console
        self._total = total
        self._pace = seconds_per_unit
        self._done = self._counted = 0.0
        self._began = time.monotonic()
        self._last_line = float("-inf")
        self._last_note = ""
        self._bar = Progress(
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=total, left=self.time_left())

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def skip(self, work: float) -> None:
        """Counts work that an earlier call did, which says nothing about the pace."""
        self._done += work
        self._show("done before")

    def advance(self, work: float, note: str) -> None:
        """Counts work that was just done.

        Args:
            work: how much, in the unit of the total.
            note: what is going on.
        """
        self._done += work
        self._counted += work
        self._show(note)

    def time_left(self) -> str:
        """The time for the rest at the pace so far."""
        if self._counted > 0:
            self._pace = (time.monotonic() - self._began) / self._counted
        return spoken((self._total - self._done) * self._pace)

    def _show(self, note: str) -> None:
        self._bar.update(self._task, completed=self._done, description=note, left=self.time_left())
        now = time.monotonic()
        another_part = note.split(":")[0] != self._last_note.split(":")[0]
        if self._console.is_terminal or not (another_part or now - self._last_line >= SECONDS_BETWEEN_LINES):
            return
        self._last_line, self._last_note = now, note
        percent = round(100 * self._done / self._total)
        self._console.print(f"{percent:3d} %  {self.time_left()} left  {note}", highlight=False)


def spoken(seconds: float) -> str:
    """A time as people say it: "45 s", "3 min 20 s"."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
