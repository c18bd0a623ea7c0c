"""Signals and kills under load: streams end with an error event, both processes exit, a second signal does not wait.

That SIGTERM lets running streams finish, and that a killed engine comes back, is shown in `test_faults.py`; that a
killed API process leaves no engine behind, in `api/responses/test_openai_client.py`.
"""

import json
import signal
import threading
import time

import httpx

from tests.live import Live, live_server

ENDLESS = {
    "model": "toolwire-demo",
    "messages": [{"role": "user", "content": "Hello!"}],
    "stream": True,
    "max_tokens": 7000,
    "ignore_eos": True,
}


class Reader(threading.Thread):
    """Collects the events of an endless stream until the server ends it; `started` is set by the first."""

    def __init__(self, server: Live) -> None:
        super().__init__()
        self.url = f"{server.url}/v1/chat/completions"
        self.started = threading.Event()
        self.events: list[str] = []

    def run(self) -> None:
        try:
            with httpx.stream("POST", self.url, json=ENDLESS, timeout=120) as reply:
                for line in reply.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line.removeprefix("data: "))
                        self.started.set()
        except httpx.HTTPError as error:
            self.events.append(repr(error))


def test_a_stream_that_exceeds_the_drain_timeout_ends_with_an_error_event_and_the_exit_is_clean() -> None:
    """A stream that merely stops looks to its client like a reply that was meant to be so short."""
    with live_server("--drain-timeout-s", "0.5") as server:
        engine, reader = server.engine(), Reader(server)
        reader.start()
        assert reader.started.wait(60)
        server.process.send_signal(signal.SIGINT)
        reader.join(60)
        assert server.process.wait(30) == 0
        engine.wait(10)
        assert reader.events[-1] == "[DONE]"
        error = json.loads(reader.events[-2])["error"]
        assert (error["type"], error["code"]) == ("server_error", "shutting_down")
        assert error["message"] == "the server is shutting down; the reply was cut off"
        assert "Traceback" not in server.output()


def test_a_second_signal_ends_the_drain(live: Live) -> None:
    reader = Reader(live)
    reader.start()
    assert reader.started.wait(60)
    live.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert live.process.poll() is None
    live.process.send_signal(signal.SIGTERM)
    live.process.wait(10)
    reader.join(30)
    assert not reader.is_alive()
