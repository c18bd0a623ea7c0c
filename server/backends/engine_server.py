"""Server of `toolwire engine`: one local backend for API processes elsewhere, by the protocol of `protocol.py`.

`/health` answers while the process lives, `/ready` says whether the model is loaded, both without a key; `/metrics`
needs it.
"""

import asyncio
import contextlib
import hmac
import logging
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from itertools import count

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from server.backends.local import LocalBackend
from server.backends.open_requests import failure_of
from server.backends.protocol import (
    GOING_AWAY,
    HEARTBEAT_S,
    MAX_FRAME_BYTES,
    PATH,
    PROTOCOL,
    UNREADABLE,
    Draining,
    FromRemote,
    OtherLoad,
    Unavailable,
    Welcome,
    decode_requests,
    encode,
)
from server.checkpoint.fingerprint import Fingerprint
from server.errors import EngineDied, ServeError
from server.messages import Abort, Failed, Generate, Pulse, Ready
from server.version import version

logger = logging.getLogger("toolwire.engine")

ENGINE_ENDED, PROTOCOL_ERROR = 1012, 1002
MAX_UNSENT = 100_000  # messages for an API process that reads none; then its connection is cut off
MAX_CONNECTIONS = 1024
DRAIN_POLL_S = 0.05


class EngineServer:
    """Connections of API processes to one backend, which the caller starts and closes."""

    def __init__(self, fingerprint: Fingerprint, key: str, render_metrics: Callable[[Pulse | None], str]) -> None:
        self._fingerprint = fingerprint
        self._render_metrics = render_metrics
        self._key = key.encode()
        self._backend: LocalBackend | None = None
        self._ready: Ready | None = None
        self._server: Server | None = None
        self._clients: set[_Client] = set()
        self._is_draining = False
        self._names = count(1)

    def use(self, backend: LocalBackend) -> None:
        """Compute with this backend, whose `on_ready` and `on_loss` are those of this server."""
        self._backend = backend

    async def listen(self, listener: socket.socket) -> None:
        """Accept connections from now on."""
        self._server = await serve(
            self._handle,
            sock=listener,
            process_request=self._answer,
            compression=None,
            max_size=MAX_FRAME_BYTES,
            server_header=None,
            logger=_quiet(),
        )

    def on_ready(self, ready: Ready) -> None:
        """Requests are taken from now on."""
        self._ready = ready

    def on_loss(self, reason: str) -> None:
        """The engine process has died: API processes send what was under way elsewhere, or here once it is ready."""
        self._ready = None
        for client in self._clients:
            client.end(ENGINE_ENDED, "its engine process has ended")

    async def drain(self, timeout_s: float) -> None:
        """Take no new request; return when every reply has ended, or after the timeout."""
        self._is_draining = True
        for client in self._clients:
            client.drain()
        deadline_s = time.monotonic() + timeout_s
        while self._num_replies() and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)

    async def close(self) -> None:
        """Close every connection; what runs is aborted."""
        if self._server is not None:
            self._server.close(code=GOING_AWAY, reason="the engine ends")
            await self._server.wait_closed()

    async def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """The reply to a request that is no connection of an API process; None for one that is."""
        path = request.path.partition("?")[0]
        is_ready = self._ready is not None and not self._is_draining
        if path == "/health":
            return connection.respond(HTTPStatus.OK, "ok\n")
        if path == "/ready":
            return connection.respond(*(HTTPStatus.OK, "ready\n") if is_ready else _NOT_READY)
        if path not in (PATH, "/metrics"):
            return connection.respond(HTTPStatus.NOT_FOUND, f"an engine answers {PATH}, /metrics, /health and /ready\n")
        if self._key and not hmac.compare_digest(_sent_key(request), self._key):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "an engine key is required (--engine-key)\n")
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self._render_metrics(await self._pulse()))
        if not is_ready or len(self._clients) >= MAX_CONNECTIONS:
            return connection.respond(*_NOT_READY)
        return None

    def _num_replies(self) -> int:
        """Replies under way for all API processes."""
        return sum(client.num_replies for client in self._clients)

    async def _pulse(self) -> Pulse | None:
        try:
            return None if self._backend is None else await self._backend.health()
        except ServeError:
            return None

    async def _handle(self, connection: ServerConnection) -> None:
        if self._ready is None or self._backend is None:  # lost since the request was answered
            return
        client = _Client(connection, self._backend, next(self._names), self._num_replies)
        self._clients.add(client)
        peer = connection.remote_address
        logger.info("an API process has connected: %s", peer)
        try:
            welcome = Welcome(PROTOCOL, version(), self._fingerprint, self._ready, time.monotonic())
            await connection.send(msgspec.json.encode(welcome).decode())
            await client.run()
        except ConnectionClosed as error:
            logger.info("an API process has left: %s: %s", peer, error)
        finally:
            self._clients.discard(client)
            await client.close()


_NOT_READY = (HTTPStatus.SERVICE_UNAVAILABLE, "the engine is loading the model, or about to end\n")


class _Client:
    """One API process: its requests, and what is to be sent to it."""

    def __init__(
        self, connection: ServerConnection, backend: LocalBackend, name: int, num_all_replies: Callable[[], int]
    ) -> None:
        self._num_all_replies = num_all_replies
        self._connection = connection
        self._backend = backend
        self._name = name  # request ids of different API processes may be equal
        self._replies: dict[str, asyncio.Task[None]] = {}
        self._unsent: list[FromRemote] = []
        self._has_unsent = asyncio.Event()
        self._is_draining = False
        self._end: asyncio.Task[None] | None = None

    @property
    def num_replies(self) -> int:
        """Replies under way."""
        return len(self._replies)

    async def run(self) -> None:
        """Read requests and send replies until the connection ends; raises ConnectionClosed."""
        senders = (asyncio.create_task(self._send_all()), asyncio.create_task(self._beat()))
        try:
            while True:
                frame = await self._connection.recv()
                try:
                    messages = decode_requests(frame if isinstance(frame, bytes) else frame.encode())
                except UNREADABLE as error:
                    logger.warning("an API process sends what is no message of this protocol: %s", error)
                    await self._connection.close(PROTOCOL_ERROR, "no message of this protocol")
                    return
                for message in messages:
                    self._take(message)
        finally:
            for task in senders:
                task.cancel()
            await asyncio.gather(*senders, return_exceptions=True)

    def drain(self) -> None:
        """Decline new requests."""
        self._is_draining = True
        self._put(Draining())

    def end(self, code: int, reason: str) -> None:
        """Close the connection behind what is written; the replies under way have failed, which it tells."""
        self._is_draining = True
        if self._end is None:
            self._end = asyncio.create_task(self._send_rest(code, reason))

    async def close(self) -> None:
        """Abort what runs."""
        for task in self._replies.values():
            task.cancel()
        await asyncio.gather(*self._replies.values(), return_exceptions=True)
        if self._end is not None:
            await asyncio.gather(self._end, return_exceptions=True)

    async def _send_rest(self, code: int, reason: str) -> None:
        await asyncio.gather(*self._replies.values(), return_exceptions=True)
        with contextlib.suppress(ConnectionClosed):
            messages, self._unsent = self._unsent, []
            await self._connection.send(encode(messages))
        await self._connection.close(code, reason)

    def _take(self, message: Generate | Abort) -> None:
        match message:
            case Abort(id=id):
                if (task := self._replies.get(id)) is not None:
                    task.cancel()
            case Generate(id=id) if self._is_draining:
                self._put(Unavailable(id))
            case Generate(id=id) if id in self._replies:
                self._put(Failed(id, "request_failed", f"a request with the id {id} is running already"))
            case Generate(id=id):
                task = self._replies[id] = asyncio.create_task(self._reply(message), name=f"reply {id}")
                task.add_done_callback(lambda _: self._replies.pop(id, None))

    async def _reply(self, request: Generate) -> None:
        named = msgspec.structs.replace(request, id=f"{self._name}/{request.id}")
        try:
            async with contextlib.aclosing(self._backend.generate(named)) as deltas:
                async for delta in deltas:
                    self._put(msgspec.structs.replace(delta, id=request.id))
        except EngineDied:
            if self._end is None:  # else the end of the connection says it of all
                self._put(Unavailable(request.id))
        except ServeError as error:
            self._put(_failed(request.id, error))
        except Exception as error:  # the edge of a request: it fails alone
            logger.exception("a request failed")
            self._put(Failed(request.id, "request_failed", f"{type(error).__name__}: {error}"))

    def _put(self, message: FromRemote) -> None:
        self._unsent.append(message)
        self._has_unsent.set()
        if len(self._unsent) > MAX_UNSENT:
            logger.warning("an API process reads nothing: its connection is cut off")
            self._connection.transport.abort()

    async def _send_all(self) -> None:
        with contextlib.suppress(ConnectionClosed):  # `run` raises it too
            while True:
                await self._has_unsent.wait()
                self._has_unsent.clear()
                messages, self._unsent = self._unsent, []
                await self._connection.send(encode(messages))

    async def _beat(self) -> None:
        """A message a second, and the engine's last heartbeat if it has one."""
        while True:
            self._put(OtherLoad(self._num_all_replies() - self.num_replies))
            with contextlib.suppress(ServeError):
                self._put(await self._backend.health())
            await asyncio.sleep(HEARTBEAT_S)


def _failed(id: str, error: ServeError) -> FromRemote:
    failure = failure_of(error)
    if failure is None:
        return Unavailable(id)
    kind, retry_after_s = failure
    return Failed(id, kind, str(error), retry_after_s)


def _sent_key(request: Request) -> bytes:
    kind, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip().encode("utf-8", "surrogateescape") if kind.lower() == "bearer" else b""


def _quiet() -> logging.Logger:
    """A logger for what the library says of each connection."""
    quiet = logging.getLogger("toolwire.websocket")
    quiet.setLevel(logging.CRITICAL)
    return quiet
