"""Handle of an engine process: start it, send its configuration, wait for it, kill it.

Importing torch, and transformers if a model needs it, is most of a start. The child does it while its parent reads the
checkpoint; then it reads its configuration from standard input.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Self

from server.backends.socket_folder import SocketFolder
from server.errors import CannotStart
from server.settings import engine_environment

KILL_TIMEOUT_S = 5.0
ENGINE = (sys.executable, "-m", "server.engine")


class EngineProcess:
    """One engine process, killed when a `with` block of it is left. Construction raises CannotStart.

    `address` is the socket that it will connect to; its parent may bind it later.
    """

    def __init__(self, program: tuple[str, ...] = ENGINE) -> None:
        with contextlib.ExitStack() as on_error:
            try:
                self._folder = SocketFolder()
                on_error.callback(self._folder.close)
                self.address = f"ipc://{self._folder.path}/socket"
                command = [*program, "--address", self.address]
                with _signals_blocked():
                    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=engine_environment())
            except OSError as error:
                raise CannotStart(f"cannot start the engine process: {error}") from error
            on_error.pop_all()

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

    async def exited(self) -> int:
        """Wait until it has exited; returns the exit code."""
        code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def report(exit_code: int) -> None:
            if not code.done():
                code.set_result(exit_code)

        def wait() -> None:
            exit_code = self.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits for it
                code.get_loop().call_soon_threadsafe(report, exit_code)

        # Not a thread of the loop's pool: the interpreter joins those at exit, and this one would wait for the engine.
        threading.Thread(target=wait, name="engine exit", daemon=True).start()
        return await code

    def kill(self) -> None:
        """Kill it, if it is still running; a stopped process as well."""
        self._process.kill()

    def close(self) -> None:
        """Kill it and remove its socket and folder. A process that a driver call holds back is not waited for."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_TIMEOUT_S)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._folder.close()

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
