"""A real server process for tests: started on a free port, waited for, ended."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Live:
    """A running server. `log` is the file that its output goes to; `clients` are closed when it ends."""

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


@contextmanager
def live_server(*arguments: str, **environment: str) -> Iterator[Live]:
    """`toolwire serve` on a free port, ready to answer; ended by SIGTERM."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "server", "serve", "--port", "0", *arguments]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **environment}
            )
        try:
            with ExitStack() as clients:
                yield Live(_wait_until_ready(process, log), process, log, clients)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        text = log.read_text(encoding="utf-8", errors="replace")
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}:\n{text}")
        if found := re.search(r"listening on (http://\S+)", text):
            url = found.group(1)
            if httpx.get(f"{url}/ready").status_code == 200:
                return url
        time.sleep(0.05)
    raise AssertionError(f"the server was not ready after {START_TIMEOUT_S} s:\n{log.read_text()}")
