"""Real server processes for tests: started on a free port, waited for, stopped."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import psutil

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 120.0
MODEL = {
    "TOOLWIRE_MODEL": "tiny"
}  # of servers whose tests name none: it starts and replies fastest, and is always here


@dataclass(frozen=True, slots=True)
class Live:
    """A running server. `log` is the file with its output; `clients` are closed when it stops."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    clients: ExitStack = field(default_factory=ExitStack)

    def client(self, **options: object) -> openai.OpenAI:
        """The real SDK, without retries so that a fault is seen."""
        given = {"api_key": "any", "max_retries": 0, "timeout": 120, **options}
        return self.clients.enter_context(openai.OpenAI(base_url=f"{self.url}/v1", **given))  # type: ignore[arg-type]

    def output(self) -> str:
        """Everything printed so far, both streams."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self) -> None:
        """Raises AssertionError with its output if it exits, or is not ready in time."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            assert self.process.poll() is None, f"the server exited with {self.process.returncode}:\n{self.output()}"
            if f"listening on {self.url}" in self.output() and httpx.get(f"{self.url}/ready").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"the server was not ready after {START_TIMEOUT_S} s:\n{self.output()}")

    def engine(self) -> psutil.Process:
        """Its engine process."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "server.engine" in child.cmdline())


class SharedServer:
    """One server with these options for many tests; started at its first use, and again after a test has stopped it."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._running = ExitStack()
        self._server: Live | None = None

    def get(self) -> Live:
        """The running server."""
        if self._server is None or self._server.process.poll() is not None:
            self.close()
            self._server = self._running.enter_context(live_server(*self._arguments))
        return self._server

    def close(self) -> None:
        """Stop it."""
        self._server = None
        self._running.close()


@contextmanager
def live_server(*arguments: str, **environment: str) -> Iterator[Live]:
    """`toolwire serve` on a free port, ready for requests; stopped by SIGTERM."""
    with listening_server(*arguments, **environment) as server:
        server.wait_until_ready()
        yield server


@contextmanager
def live_engine(*arguments: str, **environment: str) -> Iterator[Live]:
    """`toolwire engine` on a free port, ready for requests; stopped by SIGTERM."""
    with _listening("engine", "--listen", "127.0.0.1:0", *arguments, **environment) as engine:
        engine.wait_until_ready()
        yield engine


@contextmanager
def listening_server(*arguments: str, **environment: str) -> Iterator[Live]:
    """The same as `live_server`, as soon as its port is open: it may still be loading the model."""
    with _listening("serve", "--port", "0", *arguments, **environment) as server:
        yield server


@contextmanager
def _listening(*arguments: str, **environment: str) -> Iterator[Live]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "server", *arguments]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env={**MODEL, **os.environ, **environment}
            )
        try:
            with ExitStack() as clients:
                yield Live(_wait_for_url(process, log), process, log, clients)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        with suppress(psutil.NoSuchProcess):
            for connection in psutil.Process(process.pid).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    return f"http://127.0.0.1:{connection.laddr.port}"
        assert process.poll() is None, f"the server exited with {process.returncode}:\n{log.read_text()}"
        time.sleep(0.05)
    raise AssertionError(f"the server did not listen after {START_TIMEOUT_S} s:\n{log.read_text()}")
