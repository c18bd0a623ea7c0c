"""The Ray Serve application of deploy/ray on this machine: streams, a killed replica, a rolling update, autoscaling.

`make test-ray` runs these tests, with a Python that has Ray.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.engine_faults import Streamed, requests, stream_all
from benchmarks.servers import free_port
from server.cli.banner import EXAMPLE_TOOL
from tests.live import ROOT, Live, live_server

pytest.importorskip("ray")

NUM_STREAMS = 8
# In float32 replies are the same in every batch, and so on every engine.
ARGUMENTS = {
    "engine_options": "--dtype float32 --kv-cache-tokens 16384 --threads 1",
    "engine_cpus": 0.3,
    "api_cpus": 0.2,
    "drain_timeout_s": 30,
    "max_engines": 3,
    "requests_per_engine": 1000,
    "upscale_delay_s": 1,
}
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore::ResourceWarning")]


class Application:
    """The application on a Ray of its own; deployed again it is updated."""

    def __init__(self, folder: Path, **arguments: Any) -> None:
        self.port = free_port()
        self._log = folder / "log"
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.ray.driver", str(self.port)], cwd=ROOT, env=environment,
                stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.deploy(**arguments)

    @property
    def live(self) -> Live:
        """The same as a running server."""
        return Live(f"http://127.0.0.1:{self.port}", self.process, self._log)

    def deploy(self, **arguments: Any) -> None:
        """Deploy it with these arguments; returns at once, Serve replaces the replicas."""
        assert self.process.stdin is not None
        given = {**ARGUMENTS, "api": {"response_store": "none"}, **arguments}
        self.process.stdin.write(json.dumps(given).encode() + b"\n")
        self.process.stdin.flush()

    def engines(self) -> list[dict[str, Any]]:
        """The engines that the API has, as it reports them; none while it does not answer."""
        try:
            reply = httpx.get(f"{self.live.url}/v1/engines", timeout=5)
            return list(reply.json()["data"]) if reply.status_code == 200 else []
        except httpx.HTTPError:
            return []

    def urls(self) -> set[str]:
        """The addresses of those that take requests."""
        return {one["url"] for one in self.engines() if one["state"] == "up"}

    def wait(self, condition: Callable[[], bool], timeout_s: float = 400) -> None:
        """Wait for it. Raises AssertionError with the output."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            assert self.process.poll() is None, self._log.read_text()[-5000:]
            if condition():
                return
            time.sleep(0.3)
        raise AssertionError(f"engines: {self.engines()}\n{self._log.read_text()[-5000:]}")

    def close(self) -> None:
        """End it, and the Ray that it has started."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait()


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    running = Application(tmp_path_factory.mktemp("ray"))
    try:
        running.wait(lambda: len(running.urls()) == 2)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def expected() -> list[Streamed]:
    """The streams as an undisturbed server writes them."""
    with live_server("--dtype", "float32") as local:
        return asyncio.run(stream_all(local, requests(NUM_STREAMS), None))


def engine_process(url: str) -> psutil.Process:
    """The process of `toolwire engine` that listens at this address."""
    address = url.removeprefix("http://")
    return next(
        one
        for one in psutil.process_iter(["cmdline"])
        if "engine" in (line := one.info["cmdline"] or []) and address in line
    )


def check(found: list[Streamed], expected: list[Streamed]) -> None:
    assert [one.end for one in found] == ["complete"] * NUM_STREAMS
    others = [
        number
        for number, (one, whole) in enumerate(zip(found, expected, strict=True))
        if (one.text, one.logprobs, one.usage) != (whole.text, whole.logprobs, whole.usage)
    ]
    assert others == []


def test_a_call_is_streamed_in_pieces(application: Application) -> None:
    client = application.live.client()
    tools: Any = [EXAMPLE_TOOL]
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    stream = client.chat.completions.create(
        model="toolwire-demo", messages=question, tools=tools, tool_choice="required", temperature=0, stream=True
    )
    pieces = [one for chunk in stream for choice in chunk.choices for one in choice.delta.tool_calls or ()]
    assert len(pieces) > 3
    assert "city" in json.loads("".join(one.function.arguments or "" for one in pieces if one.function))


def test_tokens_are_sent_as_they_are_written(application: Application) -> None:
    """A proxy that collects a stream and sends it at its end would pass every other test."""
    body = {"model": "toolwire-demo", "messages": [{"role": "user", "content": "Hello!"}], "stream": True,
            "max_tokens": 400, "ignore_eos": True}  # fmt: skip
    began_s, arrivals = time.monotonic(), []
    with httpx.stream("POST", f"{application.live.url}/v1/chat/completions", json=body, timeout=120) as reply:
        arrivals = [time.monotonic() - began_s for line in reply.iter_lines() if line.startswith("data: ")]
    assert arrivals[1] < arrivals[-1] / 2


def test_a_client_that_leaves_frees_its_place(application: Application) -> None:
    body = {"model": "toolwire-demo", "messages": [{"role": "user", "content": "Hello!"}], "stream": True,
            "max_tokens": 6000, "ignore_eos": True}  # fmt: skip
    with httpx.stream("POST", f"{application.live.url}/v1/chat/completions", json=body, timeout=120) as reply:
        next(reply.iter_lines())
    application.wait(lambda: all(one["requests"] == 0 for one in application.engines()), 10)


@pytest.mark.parametrize("killed", ["engine", "replica"])
def test_a_killed_engine_or_replica_loses_no_reply(
    application: Application, expected: list[Streamed], killed: str
) -> None:
    """In the middle of streams; then Serve starts another one."""
    application.wait(lambda: len(application.urls()) == 2)
    before = application.urls()
    url = sorted(before)[0]
    process = engine_process(url)

    def kill() -> None:
        if killed == "replica" and (replica := process.parent()) is not None:
            replica.kill()
        process.kill()

    check(asyncio.run(stream_all(application.live, requests(NUM_STREAMS), kill)), expected)
    application.wait(lambda: len(application.urls()) == 2 and application.urls() != before)


@contextmanager
def streaming(application: Application, bodies: list[dict[str, Any]]) -> Iterator[list[list[Streamed]]]:
    """Rounds of these streams, one after another, until the block is left; the list has all of them then."""
    rounds, over = list[list[Streamed]](), threading.Event()

    def stream() -> None:
        while not over.is_set():
            rounds.append(asyncio.run(stream_all(application.live, bodies, None)))

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        yield rounds
    finally:
        over.set()
        thread.join()


def test_a_rolling_update_loses_no_reply(application: Application, expected: list[Streamed]) -> None:
    """Every replica of engines and API is replaced, and no request finds the application without an engine."""
    application.wait(lambda: len(application.urls()) == 2)
    before = application.urls()
    with streaming(application, requests(NUM_STREAMS)) as rounds:
        application.deploy(engine_options=f"{ARGUMENTS['engine_options']} --max-queue 1000")
        application.wait(lambda: len(application.urls()) == 2 and not application.urls() & before)
    assert len(rounds) >= 2
    for found in rounds:
        check(found, expected)


def test_waiting_requests_bring_another_engine(application: Application) -> None:
    before = application.urls()
    application.deploy(requests_per_engine=2, downscale_delay_s=1000)
    application.wait(lambda: len(application.urls()) == 2 and not application.urls() & before)
    bodies = [{**body, "max_tokens": 1000} for body in requests(12)]
    with streaming(application, bodies):
        application.wait(lambda: len(application.urls()) == 3)
