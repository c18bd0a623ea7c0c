"""Programs for the terminal against a server whose every text holds escape sequences."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clients.terminal import printable
from tests.live import ROOT

ATTACK = "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2J\x9b31m\x08\r\x7f\u202e"  # clipboard, screen, colour, cursor, direction
METRICS = "# TYPE toolwire_engine_up gauge\ntoolwire_engine_up 1.0\n# EOF\n"
MEMORY = {"devices": [{"name": ATTACK, "used": 1, "total": 2}], "events": [[0.0, f"level {ATTACK}"]]}


def chunk(**delta: object) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
    body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "x", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n"


class HostileHandler(BaseHTTPRequestHandler):
    """Answers what the clients of this project ask for."""

    def do_GET(self) -> None:
        """Models, metrics and memory."""
        models = {"object": "list", "data": [{"id": f"m{ATTACK}", "object": "model", "created": 0, "owned_by": "x"}]}
        bodies = {"/metrics": METRICS, "/v1/memory": json.dumps(MEMORY)}
        self._reply(bodies.get(self.path, json.dumps(models)), "application/json")

    def do_POST(self) -> None:
        """A stream of reasoning and text, or an error for the second message."""
        sent = self.rfile.read(int(self.headers["content-length"]))
        if b"second" in sent:
            self._reply(json.dumps({"error": {"message": f"no {ATTACK}"}}), "application/json", 400)
            return
        stream = (
            chunk(reasoning_content=f"Hm {ATTACK}") + chunk(content=f"seen {ATTACK}") + chunk() + "data: [DONE]\n\n"
        )
        self._reply(stream, "text/event-stream")

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _reply(self, body: str, kind: str, status: int = 200) -> None:
        raw = body.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of the hostile server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [("clients.chat", (), ("seen", "Hm", "no ")), ("server.cli.top", ("--once",), ("level",))],
)
def test_no_control_character_of_a_server_reaches_the_terminal(
    url: str, module: str, arguments: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """A reply could write to the clipboard (OSC 52), clear the screen and hide what it had printed."""
    command = [sys.executable, "-m", module, "--url", url, *arguments]
    done = subprocess.run(command, cwd=ROOT, input=b"first\nsecond\n", capture_output=True, timeout=60)
    shown = (done.stdout + done.stderr).decode()
    assert all(text in shown for text in expected), shown
    assert set(shown) & set(ATTACK.replace(" ", "")) <= set("]52;c;cm0gLXJmIH4=[2J31m"), shown


def test_ordinary_text_is_printed_as_it_is() -> None:
    text = "a\tb\n日本語 naïve 👩‍🔬 می‌خواهم"
    assert printable(text) == text
