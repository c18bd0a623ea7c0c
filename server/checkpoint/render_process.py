"""Handle of the process that renders chat templates, and the messages between it and the API process.

A chat template is a program by a checkpoint's author, and jinja2's sandbox bounds neither its time nor its memory. In a
process of its own the kernel bounds both, whatever the template calls (`render_main.py`); one that is ended so is
replaced for the next rendering.

Frames are a length of 8 bytes and as many bytes: a pickled RenderRequest; then JSON of a RenderReply and, in a frame of
its own, the text in UTF-8 with lone surrogates.
"""

import atexit
import signal
import subprocess
import sys
from dataclasses import dataclass
from pickle import dumps
from threading import Lock
from typing import IO, Any

import msgspec

from server.checkpoint.template_text import Spans
from server.errors import TemplateExhausted

PROGRAM = (sys.executable, "-m", "server.checkpoint.render_main")
MAX_TEXT_BYTES = 1 << 27
HEADER_BYTES = 8
TIME_OUT = signal.SIGPROF  # of the timer that ends the process


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One rendering within `seconds` of CPU time; without `variables` the template is only compiled.

    `tokens` are the variables that count as written by the template.
    """

    source: str
    tokens: dict[str, str]
    variables: dict[str, Any] | None
    seconds: float


class RenderReply(msgspec.Struct, frozen=True):
    """`written` are the spans that the template wrote, `variables` the names that it reads.

    `refusal` is the template's own message, `failure` any other error.
    """

    written: Spans = ()
    variables: tuple[str, ...] = ()
    refusal: str = ""
    failure: str = ""


def read_frame(file: IO[bytes], max_bytes: int | None = None) -> bytes:
    """The next frame. Raises EOFError where there is no whole one, or one longer than `max_bytes`."""
    header = file.read(HEADER_BYTES)
    length = int.from_bytes(header)
    if len(header) < HEADER_BYTES or (max_bytes is not None and length > max_bytes):
        raise EOFError
    frame = file.read(length)
    if len(frame) < length:
        raise EOFError
    return frame


def write_frame(file: IO[bytes], frame: bytes) -> None:
    """Write a frame; the caller flushes the file behind the last one."""
    file.write(len(frame).to_bytes(HEADER_BYTES))
    file.write(frame)


class RenderProcess:
    """The process of this program, one rendering at a time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def start(self) -> None:
        """Start it, if it does not run; it needs a tenth of a second before it renders."""
        with self._lock:
            self._running()

    def render(self, request: RenderRequest) -> tuple[RenderReply, str]:
        """The reply and the text. Raises TemplateExhausted where the rendering has ended the process."""
        message = dumps(request)
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                write_frame(process.stdin, message)
                process.stdin.flush()
                reply = msgspec.json.decode(read_frame(process.stdout, MAX_TEXT_BYTES), type=RenderReply)
                return reply, read_frame(process.stdout, MAX_TEXT_BYTES).decode("utf-8", "surrogatepass")
            except (EOFError, BrokenPipeError) as error:
                if self._end() == -TIME_OUT:
                    raise TemplateExhausted(f"it takes longer than {request.seconds:g} s") from error
                raise TemplateExhausted("it needs too much memory") from error

    def close(self) -> None:
        """Kill it. A later rendering starts another one."""
        with self._lock:
            if self._process is not None:
                self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # In a session of its own signals of the terminal do not reach it; it ends with its standard input.
            self._process = subprocess.Popen(
                PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        return self._process

    def _end(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        if process.poll() is None:
            process.kill()
        with process:
            return process.wait()
