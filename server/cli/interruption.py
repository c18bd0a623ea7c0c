"""Signals during the start of a command, before an event loop has them."""

import signal
from types import FrameType


class Interruption:
    """SIGINT and SIGTERM during the start: a KeyboardInterrupt, which `check` raises again where it was lost.

    Python discards what a signal's handler raises in a finalizer or in a weak reference's callback, and imports run
    many of both.
    """

    def __init__(self) -> None:
        self._received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self._received:
            raise KeyboardInterrupt

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._received = True
        raise KeyboardInterrupt
