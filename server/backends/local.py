"""The engine as a process of its own: started by name, spoken to over one socket, started again when it dies.

No import crosses the door: the engine is `python -m server.engine`, and what is said is `server.messages`.
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

from server.backends.child import ENGINE, Child
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
    EngineFrame,
    Failed,
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
_decode_mail = msgspec.msgpack.Decoder(EngineFrame).decode


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """How the engine process is started; `order` is the JSON it is given."""

    order: str
    program: tuple[str, ...] = ENGINE


def backoff_s(lived_s: float, num_starts: int) -> float:
    """How long to wait before an engine is started again: longer each time, but for one that had lived for a while."""
    return 0.1 if lived_s > LONGEST_BACKOFF_S else min(LONGEST_BACKOFF_S, 0.5 * 2 ** min(num_starts, 16))


class ProcessBackend:
    """Backend over an engine process. Notices its death at once, tells every running request, starts it again.

    `first` is an engine that was started already and waits for its order.
    """

    def __init__(
        self,
        command: EngineCommand,
        on_progress: Callable[[Progress], None] = lambda _: None,
        first: Child | None = None,
        on_ready: Callable[[Ready], None] = lambda _: None,
    ) -> None:
        self._command = command
        self._on_progress = on_progress
        self._first = first
        self._on_ready = on_ready
        self._zmq = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._child: Child | None = None
        self._inboxes: dict[str, asyncio.Queue[Delta | ServeError]] = {}
        self._ready: asyncio.Future[Ready] | None = None
        self._progress = Progress("starting", 0.0)
        self._pulse: Pulse | None = None
        self._heard_s = 0.0
        self._num_starts = 0
        self._life: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def start(self) -> Ready:
        """Load the model; raises CannotStart with the engine's own words."""
        self._ready = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._keep_alive(), name="engine keeper")
        return await asyncio.shield(self._ready)

    @property
    def restarts(self) -> int:
        """How often the engine was started again after it had died."""
        return max(0, self._num_starts - 1)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """One sequence, as Deltas; closing the generator aborts it."""
        self._require_ready()
        inbox: asyncio.Queue[Delta | ServeError] = asyncio.Queue()
        self._inboxes[request.id] = inbox
        finished = False
        try:
            await self._send(request)
            while not finished:
                mail = await inbox.get()
                if isinstance(mail, ServeError):
                    finished = True
                    raise mail
                finished = mail.finish is not None
                yield mail
        finally:
            del self._inboxes[request.id]
            if not finished:
                await self._tell(Abort(request.id))

    async def health(self) -> Pulse:
        """The latest heartbeat; raises Starting while the engine loads, EngineDied when it has gone silent."""
        self._require_ready()
        silence_s = time.monotonic() - self._heard_s
        if self._pulse is None:
            raise Starting("waiting for the first heartbeat", 1.0)
        if silence_s > SILENCE_LIMIT_S:
            raise EngineDied(f"the engine has been silent for {silence_s:.0f} s")
        return self._pulse

    async def close(self) -> None:
        """End the engine process; running generators raise EngineDied."""
        self._closing.set()
        if self._life is not None:
            if self._is_up():  # one that still loads has nothing to finish
                await self._tell(Shutdown())
                await asyncio.wait({self._life}, timeout=CLOSE_TIMEOUT_S)
            if self._child is not None:
                self._child.kill()
            await self._life
        self._zmq.destroy(linger=0)

    # -- the engine's life -------------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        while not self._closing.is_set():
            began_s = time.monotonic()
            await self._live_once()
            if self._closing.is_set() or not self._was_ever_ready():
                return
            pause_s = backoff_s(time.monotonic() - began_s, self._num_starts)
            logger.error("the engine process ended; starting it again in %.1f s", pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_s)

    async def _live_once(self) -> None:
        """One engine process from birth to death."""
        self._num_starts += 1
        self._progress, self._pulse = Progress("starting", 0.0), None
        first, self._first = self._first, None
        with first or Child(self._command.program) as child:
            self._child = child
            socket = self._zmq.socket(zmq.PAIR)
            socket.set_hwm(0)  # a full queue would block the event loop; the engine's queue is the bounded one
            socket.bind(child.address)
            child.order(self._command.order)
            reader = asyncio.create_task(self._read(socket), name="engine mail")
            try:
                code = await _exit_code(child)
                await asyncio.sleep(0.05)  # its last words may still be on their way
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
            for mail in _decode_mail(await socket.recv()):
                self._take(mail, socket)

    def _take(self, mail: Delta | Failed | Progress | Ready | StartFailed | Pulse, socket: zmq.asyncio.Socket) -> None:
        self._heard_s = time.monotonic()
        match mail:
            case Delta(id=id):
                if (inbox := self._inboxes.get(id)) is not None:
                    inbox.put_nowait(mail)
            case Failed(id=id):
                if (inbox := self._inboxes.get(id)) is not None:
                    inbox.put_nowait(_as_error(mail))
            case Pulse():
                self._pulse = mail
            case Progress():
                self._progress = mail
                self._on_progress(mail)
            case Ready():
                self._socket = socket
                self._on_ready(mail)
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(mail)
            case StartFailed(text=text):
                if self._ready is not None and not self._ready.done():
                    self._ready.set_exception(CannotStart(text))
                else:
                    logger.error("the engine cannot start again: %s", text)

    async def _send(self, message: Message) -> None:
        if self._socket is None:
            raise EngineDied("the engine process ended before it could be asked")
        try:
            await self._socket.send(_encode(message), flags=zmq.NOBLOCK)
        except zmq.Again as error:  # its end is gone, and we have not been told yet
            raise EngineDied("the engine process ended before it could be asked") from error

    async def _tell(self, message: Message) -> None:
        """Send what an engine that is gone need not hear."""
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


async def _exit_code(child: Child) -> int:
    """The child's exit code, as soon as there is one."""
    over: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def tell(code: int) -> None:
        if not over.done():
            over.set_result(code)

    def wait() -> None:
        code = child.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            over.get_loop().call_soon_threadsafe(tell, code)

    # No thread of the loop's pool: those are waited for when a program ends, and this one would wait for the engine.
    threading.Thread(target=wait, name="engine's end", daemon=True).start()
    return await over


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
