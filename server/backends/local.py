"""Backend over an engine process on this machine: one socket, restarted when it dies.

The process is `python -m server.engine`; nothing of it is imported here. The messages are `server.messages`.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import msgspec
import zmq
import zmq.asyncio

from server.backends.engine_process import ENGINE, EngineProcess
from server.errors import (
    CannotStart,
    ConstraintFailed,
    EngineDied,
    NoMemory,
    PromptTooLong,
    QueueFull,
    RequestFailed,
    ServeError,
    Starting,
    Unsupported,
)
from server.messages import (
    Abort,
    Delta,
    Failed,
    FromEngine,
    Generate,
    Message,
    Progress,
    Pulse,
    Ready,
    Shutdown,
    StartFailed,
)

logger = logging.getLogger("toolwire.engine")

SILENCE_LIMIT_S = 60.0  # a step of a long prompt on a slow CPU may take many seconds
CLOSE_TIMEOUT_S = 10.0
LONGEST_BACKOFF_S = 30.0

_encode = msgspec.msgpack.Encoder().encode
_decode_messages = msgspec.msgpack.Decoder(list[FromEngine]).decode


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """Command line of the engine process, and its configuration as JSON."""

    config: str
    program: tuple[str, ...] = ENGINE


def backoff_s(lived_s: float, num_starts: int) -> float:
    """Pause before a restart: grows with each start, and is short after an engine that had run for a while."""
    return 0.1 if lived_s > LONGEST_BACKOFF_S else min(LONGEST_BACKOFF_S, 0.5 * 2 ** min(num_starts, 16))


class LocalBackend:
    """Backend over an engine process. When the process exits, running requests fail and it is restarted.

    `first` is an engine process that is already started and waits for its configuration.
    """

    def __init__(
        self,
        command: EngineCommand,
        on_progress: Callable[[Progress], None] = lambda _: None,
        first: EngineProcess | None = None,
        on_ready: Callable[[Ready], None] = lambda _: None,
    ) -> None:
        self._command = command
        self._on_progress = on_progress
        self._first = first
        self._on_ready = on_ready
        self._zmq = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._process: EngineProcess | None = None
        self._inboxes: dict[str, asyncio.Queue[Delta | ServeError]] = {}
        self._ready: asyncio.Future[Ready] | None = None
        self._progress = Progress("starting", 0.0)
        self._pulse: Pulse | None = None
        self._last_message_s = 0.0
        self._num_starts = 0
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def start(self) -> Ready:
        """Load the model; raises CannotStart with the engine's message."""
        self._ready = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        return await asyncio.shield(self._ready)

    @property
    def restarts(self) -> int:
        """Number of restarts after the engine had died."""
        return max(0, self._num_starts - 1)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """Generate one sequence; closing the generator aborts it."""
        self._require_ready()
        inbox: asyncio.Queue[Delta | ServeError] = asyncio.Queue()
        self._inboxes[request.id] = inbox
        finished = False
        try:
            await self._send(request)
            while not finished:
                item = await inbox.get()
                if isinstance(item, ServeError):
                    finished = True
                    raise item
                finished = item.finish is not None
                yield item
        finally:
            del self._inboxes[request.id]
            if not finished:
                await self._send_if_up(Abort(request.id))

    async def health(self) -> Pulse:
        """The latest heartbeat; raises Starting while the engine loads, EngineDied if it has gone silent."""
        self._require_ready()
        silence_s = time.monotonic() - self._last_message_s
        if self._pulse is None:
            raise Starting("waiting for the first heartbeat", 1.0)
        if silence_s > SILENCE_LIMIT_S:
            raise EngineDied(f"the engine has been silent for {silence_s:.0f} s")
        return self._pulse

    async def close(self) -> None:
        """End the engine process; running generators raise EngineDied."""
        self._closing.set()
        if self._supervisor is not None:
            if self._is_up():  # an engine that is still loading has nothing to finish
                await self._send_if_up(Shutdown())
                await asyncio.wait({self._supervisor}, timeout=CLOSE_TIMEOUT_S)
            if self._process is not None:
                self._process.kill()
            await self._supervisor
        self._zmq.destroy(linger=0)

    # -- supervision ------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while not self._closing.is_set():
            begin_s = time.monotonic()
            await self._run_engine()
            if self._closing.is_set() or not self._was_ever_ready():
                return
            pause_s = backoff_s(time.monotonic() - begin_s, self._num_starts)
            logger.error("the engine process exited; restarting it in %.1f s", pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_s)

    async def _run_engine(self) -> None:
        """Run one engine process until it exits."""
        self._num_starts += 1
        self._progress, self._pulse = Progress("starting", 0.0), None
        first, self._first = self._first, None
        with first or EngineProcess(self._command.program) as process:
            self._process = process
            socket = self._zmq.socket(zmq.PAIR)
            socket.set_hwm(0)  # a full queue would block the event loop; the engine's queue is the bounded one
            socket.bind(process.address)
            process.send_config(self._command.config)
            reader = asyncio.create_task(self._read(socket), name="engine messages")
            try:
                code = await _exit_code(process)
                await asyncio.sleep(0.05)  # its last messages may still be in transit
            finally:
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reader
                self._socket = None
                socket.close(linger=0)
        self._fail_all(EngineDied(f"the engine process ended (exit code {code}) while this request ran"))
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(CannotStart(f"the engine ended while it started (exit code {code})"))

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            for message in _decode_messages(await socket.recv()):
                self._handle(message, socket)

    def _handle(self, message: FromEngine, socket: zmq.asyncio.Socket) -> None:
        self._last_message_s = time.monotonic()
        match message:
            case Delta(id=id):
                if (inbox := self._inboxes.get(id)) is not None:
                    inbox.put_nowait(message)
            case Failed(id=id):
                if (inbox := self._inboxes.get(id)) is not None:
                    inbox.put_nowait(_as_error(message))
            case Pulse():
                self._pulse = message
            case Progress():
                self._progress = message
                self._on_progress(message)
            case Ready():
                self._socket = socket
                self._on_ready(message)
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(message)
            case StartFailed(text=text):
                if self._ready is not None and not self._ready.done():
                    self._ready.set_exception(CannotStart(text))
                else:
                    logger.error("the engine cannot restart: %s", text)

    async def _send(self, message: Message) -> None:
        if self._socket is None:
            raise EngineDied("the engine process ended before it received the request")
        try:
            await self._socket.send(_encode(message), flags=zmq.NOBLOCK)
        except zmq.Again as error:  # the process is gone, and its exit is not noticed yet
            raise EngineDied("the engine process ended before it received the request") from error

    async def _send_if_up(self, message: Message) -> None:
        """Send to a running engine; do nothing if there is none."""
        with contextlib.suppress(EngineDied):
            await self._send(message)

    def _require_ready(self) -> None:
        if not self._is_up():
            raise Starting(self._progress.stage, self._progress.fraction)

    def _is_up(self) -> bool:
        return self._socket is not None

    def _was_ever_ready(self) -> bool:
        return self._ready is not None and self._ready.done() and self._ready.exception() is None

    def _fail_all(self, error: EngineDied) -> None:
        for inbox in self._inboxes.values():
            inbox.put_nowait(error)


async def _exit_code(process: EngineProcess) -> int:
    """Wait for the process to exit; returns its exit code."""
    exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def report(code: int) -> None:
        if not exited.done():
            exited.set_result(code)

    def wait() -> None:
        code = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits for it
            exited.get_loop().call_soon_threadsafe(report, code)

    # Not a thread of the loop's pool: the interpreter joins those at exit, and this one would wait for the engine.
    threading.Thread(target=wait, name="engine exit", daemon=True).start()
    return await exited


def _as_error(failed: Failed) -> ServeError:
    match failed.kind:
        case "too_long":
            return PromptTooLong(failed.text, param="messages", code="context_length_exceeded")
        case "bad_constraint":
            return ConstraintFailed(failed.text)
        case "unsupported":
            return Unsupported(failed.text)
        case "queue_full":
            return QueueFull(failed.text, retry_after_s=failed.retry_after_s or 1.0)
        case "no_memory":
            return NoMemory(failed.text, retry_after_s=failed.retry_after_s or 1.0)
        case "request_failed":
            return RequestFailed(failed.text)
        case "engine_died":
            return EngineDied(failed.text)
