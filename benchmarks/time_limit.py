"""Hard time limit of a measurement: what was measured until then is reported, and the process ends."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODE = 3


@contextmanager
def time_limit(seconds: float, report: Callable[[], None]) -> Iterator[None]:
    """After `seconds` inside the block, call `report` in another thread, then end this process with EXIT_CODE.

    Works while the main thread waits for a device that never answers.
    """

    def end() -> None:
        try:
            print(f"time limit of {seconds:.0f} s", file=sys.stderr)
            report()
            sys.stdout.flush()
        finally:
            os._exit(EXIT_CODE)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
