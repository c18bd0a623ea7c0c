"""Scripts that wait."""

import threading
from collections.abc import Iterator

from server.messages import Delta
from tests.backends.scripted import Script


class HeldScript:
    """A script whose pieces from number `hold_at` on come when it is released."""

    def __init__(self, script: Script, hold_at: int) -> None:
        self._script = script
        self._hold_at = hold_at
        self._released = threading.Event()

    def release(self) -> None:
        """Let the rest come."""
        self._released.set()

    def pieces(self, _: object = None) -> Iterator[Delta | Exception | float]:
        """The pieces, and a pause as often as they are held."""
        for number, piece in enumerate(self._script):
            while number >= self._hold_at and not self._released.is_set():
                yield 0.005
            yield piece
