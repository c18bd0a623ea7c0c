"""Backend over an engine process on this machine: one socket, restarted when it dies.

The process is `python -m server.engine`; nothing of it is imported here. The messages are `server.messages`. An exit,
an exception while its messages are read and a silence that lasts too long are one event: the process is killed if it
still runs, the requests under way are queued (`open_requests.py`), and after a pause another process is started.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import msgspec
import zmq
import zmq.asyncio

from server.backends.engine_process import ENGINE, EngineProcess
from server.backends.open_requests import AdapterChanges, OpenRequests, Seeds, error_of
from server.errors import CannotStart, EngineDied, ShuttingDown, Starting
from server.messages import (
    Abort,
    AdapterChanged,
    Delta,
    EngineFailed,
    Failed,
    FromEngine,
    Generate,
    LoadAdapter,
    Message,
    Progress,
    Pulse,
    Ready,
    Shutdown,
    UnloadAdapter,
)

logger = logging.getLogger("toolwire.engine")

READY_SILENCE_S = 60.0  # a step of a long prompt on a slow CPU may take many seconds
LOAD_SILENCE_S = 1800.0  # while it loads, an engine says nothing as long as it packs, measures or records
SILENCE_POLL_S = 0.5
CLOSE_TIMEOUT_S = 10.0
SHORTEST_BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 30.0
MAX_FAILED_STARTS = 3  # in a row; then requests under way wait no longer

_encode = msgspec.msgpack.Encoder().encode
_decode_messages = msgspec.msgpack.Decoder(list[FromEngine]).decode


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """Command line of the engine process, and its configuration as JSON.

    `seed` is that of the first request which brings none; the next one has the next seed. An engine that sends nothing
    for `timeout_s` is killed and started again; 0 is never. `pause_s` comes before the restart of an engine that died
    soon after its start, and doubles with each such engine in a row.
    """

    config: str
    program: tuple[str, ...] = ENGINE
    seed: int = 0
    timeout_s: float = 0.0
    pause_s: float = 0.5


def backoff_s(first_s: float, num_short_lives: int) -> float:
    """Pause before a restart: grows with the number of engines in a row that died soon after their start."""
    return (
        SHORTEST_BACKOFF_S
        if num_short_lives == 0
        else min(LONGEST_BACKOFF_S, first_s * 2 ** min(num_short_lives - 1, 16))
    )


class LocalBackend:
    """Backend over an engine process. When the process dies it is restarted, and the replies under way go on.

    `first` is an engine process that is already started and waits for its configuration. `on_loss` is called when one
    has died; then its requests fail with EngineDied behind what they have written, to go on elsewhere.
    """

    def __init__(
        self,
        command: EngineCommand,
        on_progress: Callable[[Progress], None] = lambda _: None,
        first: EngineProcess | None = None,
        on_ready: Callable[[Ready], None] = lambda _: None,
        on_loss: Callable[[str], None] | None = None,
    ) -> None:
        self._command = command
        self._on_progress = on_progress
        self._first = first
        self._on_ready = on_ready
        self._on_loss = on_loss
        self._zmq = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._process: EngineProcess | None = None
        self._requests = OpenRequests()
        self._seeds = Seeds(command.seed)
        self._ready: asyncio.Future[Ready] | None = None
        self._progress = Progress("starting", 0.0)
        self._pulse: Pulse | None = None
        self._failure = ""  # the engine's own words
        self._last_message_s = 0.0
        self._num_starts = 0
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._adapters = AdapterChanges()
        self._due_changes: list[LoadAdapter | UnloadAdapter] = []

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
        one = self._requests.open(self._seeds.give(request))
        try:
            await self._send_due()
            finished = False
            while not finished:
                delta = await one.next_delta()
                finished = delta.finish is not None
                yield delta
        finally:
            if one.is_sent and not one.is_over:
                await self._send(Abort(request.id))
            self._requests.close(one)
            await self._send_due()

    async def health(self) -> Pulse:
        """The latest heartbeat; raises Starting while the engine loads, EngineDied if it has gone silent."""
        self._require_ready()
        silence_s = time.monotonic() - self._last_message_s
        if self._pulse is None:
            raise Starting("waiting for the first heartbeat", 1.0)
        if silence_s > READY_SILENCE_S:
            raise EngineDied(f"the engine has been silent for {silence_s:.0f} s")
        return self._pulse

    async def change_adapter(self, message: LoadAdapter | UnloadAdapter) -> None:
        """Load or unload an adapter, one at a time. Raises BadRequest with the engine's reason if it does not.

        An engine that is started again changes its adapters in the same way.
        """
        async with self._adapters.turn:
            self._require_ready()
            answer = self._adapters.expect(message)
            await self._send(message)
            await answer

    async def close(self) -> None:
        """End the engine process; running generators raise ShuttingDown."""
        self._closing.set()
        self._adapters.fail(ShuttingDown())
        self._requests.fail_all(ShuttingDown())
        if self._supervisor is not None:
            if self._is_up():  # an engine that is still loading has nothing to finish
                await self._send(Shutdown())
                await asyncio.wait({self._supervisor}, timeout=CLOSE_TIMEOUT_S)
            if self._process is not None:
                self._process.kill()
            await self._supervisor
        self._zmq.destroy(linger=0)

    # -- supervision ------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        num_short_lives = num_failed_starts = 0
        while not self._closing.is_set():
            begin_s = time.monotonic()
            try:
                reason = await self._run_engine()
            except Exception as error:  # whatever breaks here is one more death of the engine
                logger.exception("the engine process cannot be supervised")
                reason = f"{type(error).__name__}: {error}"
            was_up, self._socket = self._is_up(), None
            self._adapters.fail(EngineDied(reason))
            num_under_way = self._requests.engine_died()
            if self._on_loss is not None:
                self._requests.fail_all(EngineDied(reason))
                self._on_loss(reason)
            if self._closing.is_set() or not self._was_ever_ready():
                self._report_first_start(reason)
                break
            num_failed_starts = 0 if was_up else num_failed_starts + 1
            if num_failed_starts >= MAX_FAILED_STARTS:
                self._requests.fail_all(EngineDied("the engine process ended, and cannot be started again"))
            num_short_lives = 0 if time.monotonic() - begin_s > LONGEST_BACKOFF_S else num_short_lives + 1
            pause_s = backoff_s(self._command.pause_s, num_short_lives)
            logger.error("%s; restarting it in %.1f s; requests under way: %d", reason, pause_s, num_under_way)
            self._progress = Progress("waiting to restart after a failure", 0.0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_s)
        self._requests.fail_all(ShuttingDown())

    def _report_first_start(self, reason: str) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(CannotStart(self._failure or reason))

    async def _run_engine(self) -> str:
        """Run one engine process until it dies or is killed; returns why."""
        self._num_starts += 1
        self._progress, self._pulse, self._failure = Progress("starting", 0.0), None, ""
        first, self._first = self._first, None
        with contextlib.ExitStack() as at_the_end:
            process = self._process = at_the_end.enter_context(first or EngineProcess(self._command.program))
            socket = self._zmq.socket(zmq.PAIR)
            at_the_end.callback(socket.close, linger=0)
            socket.set_hwm(0)  # a full queue would block the event loop; the engine's queue is the bounded one
            socket.bind(process.address)
            process.send_config(self._command.config)
            self._last_message_s = time.monotonic()
            exited = asyncio.create_task(process.exited(), name="engine exit")
            reader = asyncio.create_task(self._read(socket), name="engine messages")
            silence = asyncio.create_task(self._watch_silence(), name="engine silence")
            tasks = (exited, reader, silence)
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if exited.done():
                    await asyncio.sleep(0.05)  # its last messages may still be in transit
                for watch in (reader, silence):
                    if watch.done():
                        process.kill()
                        return f"the engine process was killed: {watch.result()}"
                detail = f": {self._failure}" if self._failure else ""
                return f"the engine process ended (exit code {await exited}){detail}"
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_silence(self) -> str:
        """Returns once the engine has sent nothing for too long.

        The time is counted in turns of this loop: one that was itself held up reads the engine's messages first.
        """
        silent_s, last_s = 0.0, self._last_message_s
        while not self._command.timeout_s or silent_s < (self._command.timeout_s if self._is_up() else LOAD_SILENCE_S):
            await asyncio.sleep(SILENCE_POLL_S)
            silent_s = silent_s + SILENCE_POLL_S if last_s == self._last_message_s else 0.0
            last_s = self._last_message_s
        return f"it has sent nothing for {silent_s:.0f} s (--engine-timeout-s)"

    async def _read(self, socket: zmq.asyncio.Socket) -> str:
        """Read messages; returns why it cannot go on."""
        try:
            while True:
                for message in _decode_messages(await socket.recv()):
                    self._handle(message, socket)
                await self._send_due()
        except Exception as error:  # the engine is killed for it
            logger.exception("a message of the engine cannot be read")
            return f"its message cannot be read: {type(error).__name__}: {error}"

    def _handle(self, message: FromEngine, socket: zmq.asyncio.Socket) -> None:
        self._last_message_s = time.monotonic()
        match message:
            case Delta(id=id):
                if (one := self._requests.get(id)) is not None:
                    one.deliver(message)
            case Failed(id=id):
                if (one := self._requests.get(id)) is not None:
                    one.fail(error_of(message))
            case Pulse():
                self._pulse = message
            case Progress():
                self._progress = message
                self._on_progress(message)
            case AdapterChanged():
                self._adapters.resolve(message)
            case Ready():
                self._socket = socket
                self._due_changes = self._adapters.made()
                self._on_ready(message)
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(message)
            case EngineFailed(text=text):
                self._failure = text

    async def _send_due(self) -> None:
        """Send what may be sent, if an engine runs."""
        if self._is_up():
            due, self._due_changes = self._due_changes, []
            for change in due:  # before the requests, which may be for these adapters
                await self._send(change)
            for one in self._requests.due():
                await self._send(one.message())

    async def _send(self, message: Message) -> None:
        """Send to the engine; one that is gone gets nothing, and its exit is noticed soon."""
        if self._socket is not None:
            with contextlib.suppress(zmq.Again):
                await self._socket.send(_encode(message), flags=zmq.NOBLOCK)

    def _require_ready(self) -> None:
        if self._closing.is_set():
            raise ShuttingDown
        if not self._is_up():
            raise Starting(self._progress.stage, self._progress.fraction)

    def _is_up(self) -> bool:
        return self._socket is not None

    def _was_ever_ready(self) -> bool:
        return self._ready is not None and self._ready.done() and self._ready.exception() is None
