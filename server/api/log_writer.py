"""Writer of log lines in a thread of its own: a pipe that nobody reads or a full disk never holds up a request."""

import atexit
import os
import threading
from collections import deque
from contextlib import suppress

MAX_PENDING_CHARACTERS = 4 << 20
LAST_LINES_TIMEOUT_S = 1.0


class LogWriter:
    """A stream for `logging.StreamHandler`. Lines beyond what may wait are dropped; their number is written later.

    Writes to the file descriptor itself: a blocked thread that held the lock of `sys.stderr` would break the exit.
    """

    def __init__(self, file_descriptor: int) -> None:
        self._file_descriptor = file_descriptor
        self._lines: deque[str] = deque()
        self._num_characters = 0
        self._changed = threading.Condition()
        self.num_dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()
        atexit.register(self.drain)

    def write(self, text: str) -> None:
        """Queue a line; returns at once."""
        with self._changed:
            if self._num_characters + len(text) > MAX_PENDING_CHARACTERS:
                self.num_dropped += 1
                return
            self._lines.append(text)
            self._num_characters += len(text)
            self._changed.notify_all()

    def flush(self) -> None:
        """Do nothing: lines are written as soon as the descriptor takes them."""

    def drain(self) -> None:
        """Wait until what is queued is written, for a moment only."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_characters, LAST_LINES_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                text = self._lines.popleft()
                dropped, self.num_dropped = self.num_dropped, 0
            notice = f"{dropped} log lines were dropped: standard error was not read\n" if dropped else ""
            data = (notice + text).encode("utf-8", "backslashreplace")
            with suppress(OSError):  # a full disk: the line is lost, the server goes on
                while data:
                    data = data[os.write(self._file_descriptor, data) :]
            with self._changed:
                self._num_characters -= len(text)
                self._changed.notify_all()
