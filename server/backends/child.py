"""The engine process from outside: started before it is known what it is to load, given its order, waited for, ended.

Importing torch, and transformers where a model needs it, is most of a start. A child does it beside its parent, which
reads the checkpoint meanwhile; then it takes its order from its standard input.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Self

from server.settings import engine_environment

ENGINE = (sys.executable, "-m", "server.engine")


class Child:
    """One engine process; leaving a `with` block of it ends it, whatever it is doing.

    `address` is where it will look for its parent's socket; nothing needs to be there yet.
    """

    def __init__(self, program: tuple[str, ...] = ENGINE) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="toolwire-")
        self.address = f"ipc://{self._folder.name}/door"
        with _signals_held_back():
            self._process = subprocess.Popen(
                [*program, "--address", self.address], stdin=subprocess.PIPE, env=engine_environment()
            )

    def order(self, text: str) -> None:
        """Say what it is to load. One that has died meanwhile does not hear it: `wait` tells of that."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(text.encode())
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self) -> int:
        """Block until it has ended; its exit code."""
        return self._process.wait()

    def kill(self) -> None:
        """End it at once, if it is still there."""
        self._process.kill()

    def close(self) -> None:
        """Leave nothing of it behind."""
        self.kill()
        self.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process started in here never sees Ctrl-C or SIGTERM, which may go to the whole group: its parent decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
