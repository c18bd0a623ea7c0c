"""Handle of an engine process: start it, send its configuration, wait for it, kill it.

Importing torch, and transformers if a model needs it, is most of a start. The child does it while its parent reads the
checkpoint; then it reads its configuration from standard input.
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


class EngineProcess:
    """One engine process, killed when a `with` block of it is left.

    `address` is the socket that it will connect to; its parent may bind it later.
    """

    def __init__(self, program: tuple[str, ...] = ENGINE) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="toolwire-")
        self.address = f"ipc://{self._folder.name}/socket"
        with _signals_blocked():
            self._process = subprocess.Popen(
                [*program, "--address", self.address], stdin=subprocess.PIPE, env=engine_environment()
            )

    def send_config(self, text: str) -> None:
        """Write its configuration to its standard input; has no effect on a process that has died."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(text.encode())
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self) -> int:
        """Block until it has exited; returns the exit code."""
        return self._process.wait()

    def kill(self) -> None:
        """Kill it, if it is still running."""
        self._process.kill()

    def close(self) -> None:
        """Kill it and remove its socket and folder."""
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
def _signals_blocked() -> Iterator[None]:
    """Start processes inside that ignore Ctrl-C and SIGTERM, which may go to the whole group; the parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
