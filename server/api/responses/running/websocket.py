"""WebSocket form of `/v1/responses`: requests one after another on a connection, each answered by its events.

    {"type": "response.create", "model": ..., "input": ...}   ->   the events of a stream, one a message

A message is admitted, limited and counted like a request of its own. The last response of a connection can be continued
on it by `previous_response_id` although it is not kept (`store: false`).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.datastructures import State
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.api.body import bad
from server.api.errors import ApiError, RequestRefused, encode, error_of, error_response, unexpected
from server.api.middleware.admission import PendingRequest
from server.api.middleware.auth import KEY_CHECK
from server.api.middleware.rate_limit import ClientPlace
from server.api.middleware.request_log import access_logger
from server.api.middleware.websocket_protocol import DRAINED
from server.api.reply_handler import ReplyHandler
from server.api.responses.memory import output_items
from server.api.responses.plan import ResponsePlan
from server.api.responses.reader import PATH, LocalContext, RequestReader
from server.api.responses.wire import EndEvent, ResponseObject
from server.api.sse import STALL_TIMEOUT_S
from server.errors import QueueFull, ServeError
from server.runtime.byte_budget import ByteBudget
from server.service import Generation, until

logger = logging.getLogger("toolwire.api")

CLIENT_SHARE = 4  # a client has at most a quarter of the connections
MOST_WAITING = 16  # messages of a connection behind the one that is answered
IDLE_TIMEOUT_S = 3600.0
LONGEST_STREAM_ID = 64
GOING_AWAY, SERVICE_RESTART, TRY_AGAIN_LATER = 1001, 1012, 1013
STEER = "response.steer"


class SocketErrorObject(msgspec.Struct):
    """An error as it is sent over HTTP, with the headers that steer retries."""

    message: str
    type: str
    param: str | None
    code: str | None
    headers: Mapping[str, str] | UnsetType = UNSET


class SocketError(msgspec.Struct, tag_field="type", tag="error"):
    """The answer to a message that is refused; `status` is that of HTTP."""

    status: int
    error: SocketErrorObject


class SteerFailed(msgspec.Struct, tag_field="type", tag="response.steer.failed"):
    """The answer to `response.steer`: a response cannot be given more input while it is written."""

    sequence_number: int
    error: Mapping[str, str]
    steer: Mapping[str, Any]


class SocketMessage(msgspec.Struct):
    """One message of a client, and its place in admission."""

    raw: bytes
    place: PendingRequest


class WebSocketHandler:
    """Accepts connections, at most `max_connections`; `budget` bounds what they remember."""

    def __init__(self, replies: ReplyHandler, reader: RequestReader, budget: ByteBudget, max_connections: int) -> None:
        self._replies = replies
        self._reader = reader
        self._budget = budget
        self._max_connections = max_connections
        self._connections: Counter[str] = Counter()  # by client

    async def serve(self, websocket: WebSocket) -> None:
        """Answer the messages of one connection until it ends."""
        client = websocket.scope["state"]["client_place"].client
        most_of_one = max(1, self._max_connections // CLIENT_SHARE)
        if self._connections.total() >= self._max_connections or self._connections[client] >= most_of_one:
            text = f"{self._connections.total()} WebSocket connections are open, {self._connections[client]} of them"
            error = error_of(QueueFull(f"{text} of this client (--max-websockets); use HTTP, or retry shortly"))
            await error_response(error, websocket.scope)(websocket.scope, websocket.receive, websocket.send)
            return
        self._connections[client] += 1
        try:
            await websocket.accept()
            await SocketConnection(websocket, self._replies, self._reader, self._budget).run()
        finally:
            self._connections[client] -= 1
            self._connections += Counter()  # drops clients without a connection


class SocketConnection:
    """One accepted connection."""

    def __init__(self, websocket: WebSocket, replies: ReplyHandler, reader: RequestReader, budget: ByteBudget) -> None:
        self._websocket = websocket
        self._replies = replies
        self._reader = reader
        self._budget = budget
        self._state: Mapping[str, Any] = websocket.scope["state"]
        self._queue: asyncio.Queue[SocketMessage | None] = asyncio.Queue()  # None: there will be no more
        self._last = LocalContext("", [])
        self._last_bytes = 0

    async def run(self) -> None:
        """Answer messages until the client leaves, the server ends or nothing comes for too long."""
        receiving = asyncio.create_task(self._receive())
        draining = asyncio.create_task(self._drain())
        try:
            while (message := await self._next_message()) is not None:
                answering = asyncio.create_task(self._answer(message))
                try:
                    await asyncio.wait({answering, receiving}, return_when=asyncio.FIRST_COMPLETED)
                finally:  # the client has left, unless the answer is complete
                    answering.cancel()
                    await asyncio.gather(answering, return_exceptions=True)
            if not receiving.done():
                code = SERVICE_RESTART if draining.done() else GOING_AWAY
                await self._websocket.close(code)
        except WebSocketDisconnect:
            pass  # a client that leaves is no fault
        finally:
            for task in (receiving, draining):
                task.cancel()
            await asyncio.gather(receiving, draining, return_exceptions=True)
            while not self._queue.empty():
                message = self._queue.get_nowait()
                if message is not None:
                    message.place.leave()
            self._budget.free(self._last_bytes)

    async def _next_message(self) -> SocketMessage | None:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                return await self._queue.get()
        except TimeoutError:
            return None

    async def _receive(self) -> None:
        """Queue what arrives. Reads on while a reply is written: the end of the connection comes the same way."""
        try:
            while (received := await self._websocket.receive())["type"] != "websocket.disconnect":
                text = received.get("text")
                try:
                    self._queue.put_nowait(self._admitted(received["bytes"] if text is None else text.encode()))
                except RequestRefused as refused:
                    await EventSender(self._websocket).refuse(refused.error)
        finally:
            self._queue.put_nowait(None)

    def _admitted(self, raw: bytes) -> SocketMessage:
        """The message with its place. Raises RequestRefused (429) where there is none."""
        if self._queue.qsize() >= MOST_WAITING:
            raise RequestRefused(error_of(QueueFull(f"{MOST_WAITING} messages wait on this connection already")))
        place = PendingRequest(self._state["admission"], len(raw))
        place.received_body(len(raw))
        return SocketMessage(raw, place)

    async def _drain(self) -> None:
        drained: asyncio.Event | None = self._state.get(DRAINED)
        if drained is not None:
            await drained.wait()
            self._queue.put_nowait(None)

    async def _answer(self, message: SocketMessage) -> None:
        """Answer one message, whatever happens; it is counted and logged like a request."""
        sender = EventSender(self._websocket)
        outcome, started_s = "cancelled", time.perf_counter()
        try:
            outcome = await self._write(message, sender)
        except RequestRefused as refused:
            outcome = await sender.refuse(refused.error)
        except ServeError as error:
            outcome = await sender.refuse(error_of(error))
        except WebSocketDisconnect:
            outcome = "cancelled"  # the client has left: nobody is there to be told
        except TimeoutError:
            logger.info("a client took nothing for %.0f s: its connection is closed", STALL_TIMEOUT_S)
            await self._websocket.close(TRY_AGAIN_LATER)
        except Exception:
            logger.exception("unhandled exception in an answer to a message")
            outcome = await sender.refuse(unexpected())
        finally:
            message.place.leave()
            self._replies.metrics.count_request(PATH, outcome)
            seconds = round(time.perf_counter() - started_s, 4)
            access_logger.info("message", extra={"path": PATH, "status": outcome, "seconds": seconds})

    async def _write(self, message: SocketMessage, sender: "EventSender") -> str:
        """Send the events of one response; returns the outcome. Raises RequestRefused or a ServeError."""
        if (check_key := self._state.get(KEY_CHECK)) is not None:
            check_key()
        limit_s = self._replies.settings.request_timeout_s
        deadline_s = time.monotonic() + limit_s if limit_s else None
        place: ClientPlace = self._state["client_place"]
        with place.running():
            async with until(deadline_s):
                body = await self._replies.parse(self._reader.parse, message.raw)
                envelope = _read_envelope(body.fields)
                sender.stream_id = envelope.stream_id
                if envelope.type == STEER:
                    await sender.send(_steer_failed(body.fields))
                    return "400"
                state = State({**self._state, "place": message.place})
                last = self._last
                if body.fields.get("previous_response_id") == last.id:
                    self._forget()  # a turn that fails cannot be tried again behind it
                plan = await self._reader.plan(state, body, message.raw, last, envelope.generate)
            try:
                generation = await self._replies.start(plan, deadline_s, state)
            except ServeError as error:
                if not (events := plan.refused(error)):
                    raise
                for event in events:
                    await sender.send(event)
                return "failed"
            return await self._send_events(plan, generation, sender)

    async def _send_events(self, plan: ResponsePlan, generation: Generation, sender: "EventSender") -> str:
        try:
            async with aclosing(plan.events(generation)) as steps:
                async for event in (event async for events in steps for event in events):
                    if isinstance(event, EndEvent):
                        self._remember(plan, event.response)
                    await sender.send(event)
        except ServeError:
            return "failed"  # its last event tells why
        finally:
            await generation.aclose()
        return "200"

    def _remember(self, plan: ResponsePlan, response: ResponseObject) -> None:
        """Let the next message continue this response, where its items have room."""
        self._forget()
        items = [*plan.earlier, *plan.items, *output_items(msgspec.to_builtins(response))]
        num_bytes = len(msgspec.json.encode(items))
        if self._budget.take(num_bytes):
            self._last, self._last_bytes = LocalContext(response.id, items), num_bytes

    def _forget(self) -> None:
        self._budget.free(self._last_bytes)
        self._last, self._last_bytes = LocalContext("", []), 0


class EventSender:
    """Sends the events that answer one message, with the `stream_id` that it brought."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self.stream_id: str | None = None

    async def send(self, event: msgspec.Struct) -> None:
        """Send one event. Raises WebSocketDisconnect, and TimeoutError where the client takes nothing."""
        data = encode(event)
        if self.stream_id is not None:
            data = data[:-1] + b',"stream_id":' + msgspec.json.encode(self.stream_id) + b"}"
        async with asyncio.timeout(STALL_TIMEOUT_S):
            await self._websocket.send_text(data.decode())

    async def refuse(self, error: ApiError) -> str:
        """Send an error; returns its status. A client that has left meanwhile misses it."""
        shown = SocketErrorObject(error.message, error.type, error.param, error.code, dict(error.headers) or UNSET)
        with suppress(WebSocketDisconnect, TimeoutError):
            await self.send(SocketError(error.status, shown))
        return str(error.status)


class _Envelope(msgspec.Struct):
    """The fields of a message that are not those of a request."""

    type: str
    stream_id: str | None
    generate: bool


def _read_envelope(fields: dict[str, Any]) -> _Envelope:
    """Take the envelope out of a message. Raises RequestRefused (400)."""
    kind, stream_id, generate = fields.pop("type", None), fields.pop("stream_id", None), fields.pop("generate", None)
    if kind is None:
        raise bad("Missing required parameter: 'type'.", "type", "missing_required_parameter")
    if kind not in ("response.create", STEER):
        text = f"Invalid value: '{str(kind)[:64]}'. Supported values are: 'response.create'."
        raise bad(text, "type", "invalid_value")
    if not (stream_id is None or (isinstance(stream_id, str) and 0 < len(stream_id) <= LONGEST_STREAM_ID)):
        text = f"Invalid 'stream_id': expected a string of at most {LONGEST_STREAM_ID} characters."
        raise bad(text, "stream_id", "invalid_value")
    if not (generate is None or isinstance(generate, bool)):
        raise bad("Invalid type for 'generate': expected a boolean.", "generate", "invalid_type")
    if fields.get("background"):
        raise bad("Background mode is not available on a WebSocket; use POST.", "background", "unsupported_parameter")
    fields.pop("stream", None)
    options = fields.get("prompt_cache_options")
    prepares_only = isinstance(options, dict) and options.get("prewarm") is True
    return _Envelope(kind, stream_id, generate is not False and not prepares_only)


def _steer_failed(fields: Mapping[str, Any]) -> SteerFailed:
    text = "A response cannot be given more input while it is written; send a new response.create."
    error = {"code": "steering_not_supported", "message": text, "type": "invalid_request_error"}
    sent, last_id = fields.get("input"), fields.get("previous_response_id")
    steer = {
        "input": sent if isinstance(sent, str | list) else "",
        "previous_response_id": last_id if isinstance(last_id, str) else "",
    }
    return SteerFailed(0, error, steer)
