"""Read the probe in a thread, so that a slow driver call does not delay a step.

It polls faster while memory is short or falling: between two readings a process can write some 100 MiB.
"""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from server.messages import DeviceReading

logger = logging.getLogger("toolwire.memory")

INTERVAL_S = 0.1
FAST_POLL_FACTOR = 5  # times as often while memory is short or falling
SHORT_SHARE, MOVED_SHARE = 0.1, 0.01  # of the device: free less than this, or this much less free than before


class Probe(Protocol):
    """Source of device readings. `read` blocks as long as the driver does and does not raise on device errors."""

    def read(self) -> tuple[DeviceReading, ...]:
        """The device that the model runs on, then the other visible ones."""


class Watcher:
    """Thread that keeps the newest readings; the first are read by the constructor.

    It survives any exception of the probe: the readings grow old meanwhile, which the guard notices.
    """

    def __init__(self, probe: Probe, interval_s: float = INTERVAL_S) -> None:
        self._probe = probe
        self._interval_s = interval_s
        self._pause_s = interval_s
        self._stop = threading.Event()
        self._is_failing = False
        self._latest = probe.read()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def latest(self) -> tuple[DeviceReading, ...]:
        """The newest readings; a new tuple after each poll."""
        return self._latest

    def close(self) -> None:
        """Stop polling; waits up to 2 s for a call in progress."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _watch(self) -> None:
        while not self._stop.wait(self._pause_s):
            before = self._latest
            try:
                self._latest = self._probe.read()
            except Exception:  # a thread that ended would leave the guard blind for ever
                if not self._is_failing:
                    logger.exception("the device's memory cannot be read; it is tried again")
                self._is_failing = True
                continue
            self._is_failing = False
            hurried = bool(before and self._latest) and is_pressing(before[0], self._latest[0])
            self._pause_s = self._interval_s / FAST_POLL_FACTOR if hurried else self._interval_s


def is_pressing(before: DeviceReading, now: DeviceReading) -> bool:
    """Whether memory is short or falling."""
    return now.free < SHORT_SHARE * now.total or before.free - now.free > MOVED_SHARE * now.total


Latest = Callable[[], tuple[DeviceReading, ...]]
