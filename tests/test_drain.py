"""The way out under load: what does not finish in time gets an error event, a second signal waits for nothing."""

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


def read_stream(server: Live, begun: threading.Event, data: list[str]) -> None:
    """Collects the events of an endless stream until the server ends it."""
    try:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=ENDLESS, timeout=120) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: "):
                    data.append(line.removeprefix("data: "))
                    begun.set()
    except httpx.HTTPError as error:
        data.append(repr(error))


def test_what_does_not_finish_in_time_is_told_and_the_exit_is_clean() -> None:
    """A stream that merely stops looks to its client like a reply that was meant to be so short."""
    with live_server("--drain-timeout-s", "0.5") as server:
        begun, data = threading.Event(), list[str]()
        reader = threading.Thread(target=read_stream, args=(server, begun, data))
        reader.start()
        assert begun.wait(60)
        server.process.send_signal(signal.SIGTERM)
        reader.join(60)
        assert server.process.wait(30) == 0
        assert data[-1] == "[DONE]"
        assert json.loads(data[-2])["error"]["type"] == "server_error"
        assert "Traceback" not in server.output()


def test_a_second_signal_ends_at_once() -> None:
    with live_server("--drain-timeout-s", "300") as server:
        begun, data = threading.Event(), list[str]()
        reader = threading.Thread(target=read_stream, args=(server, begun, data))
        reader.start()
        assert begun.wait(60)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        reader.join(30)
        assert not reader.is_alive()
