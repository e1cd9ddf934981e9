"""Ctrl-C and SIGTERM while a run goes on: at a step's end it stops with a checkpoint; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the process to stop. Like Ctrl-C, it is no Exception that a library may swallow.

    Args:
        number: of the signal.
        message: how to go on.
    """

    def __init__(self, number: int, message: str = "interrupted; the same command goes on") -> None:
        self.exit_code = 128 + number
        super().__init__(message)


class Interruption:
    """Whether somebody asked this process to stop: `number` is the signal that was noted, or None.

    Args:
        on_request: called when a signal is noted.
    """

    def __init__(self, on_request: Callable[[], None]) -> None:
        self.number: int | None = None
        self._on_request = on_request
        self._waits = False

    @contextmanager
    def at_a_good_moment(self) -> Iterator[None]:
        """While inside, the first signal is only noted: whoever works looks at `number` when it suits."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def handle(self, number: int, frame: Any) -> None:
        """The signal handler.

        Args:
            number: of the signal.
            frame: where it came, which does not matter.

        Raises:
            Interrupted: if nobody waits for a good moment, or this is the second signal.
        """
        del frame
        if not self._waits or self.number is not None:
            raise Interrupted(number)
        self.number = number
        self._on_request()


@contextmanager
def interruptible(on_request: Callable[[], None]) -> Iterator[Interruption]:
    """Handles Ctrl-C and SIGTERM inside the block.

    Args:
        on_request: called when a signal is noted for later, to say so.

    Yields:
        What was asked.
    """
    interruption = Interruption(on_request)
    if threading.current_thread() is not threading.main_thread():  # Python gives signals to the main thread alone
        yield interruption
        return
    before = {number: signal.signal(number, interruption.handle) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
