"""A chat request from its bytes to its reply: whole or as a stream, both from the same chunks."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import bad, read_lenient, read_object
from server.api.chat.examples import REPLY, REQUESTS, STREAMS
from server.api.chat.schemas import ChatCompletionRequest, read_request
from server.api.chat.to_reply import Chunker, ReplyStyle, chunks_of, encode_reply, fold
from server.api.chat.to_request import RequestMapper
from server.api.chat.wire import ChatCompletion, ChatCompletionChunk
from server.api.errors import ApiError, RequestRefused, no_such_model
from server.api.metrics import Metrics
from server.api.middleware.auth import salt_of
from server.api.middleware.request_log import prompt_logger
from server.api.middleware.request_spans import RequestSpans
from server.api.openapi.operations import REQUEST_ID, error_replies, json_body, ref
from server.api.sse import EventStream, unless_gone
from server.chat_request import ChatRequest
from server.errors import ServeError
from server.service import ChatService, ChoiceEvent, Generation, Outcome, RequestObserver, until
from server.settings import ApiSettings

PATH = "/v1/chat/completions"
BODY_TIMEOUT_S = 60.0
LARGE_BODY = 4 * 1024  # bytes; larger ones are validated off the event loop
TIMEOUT_HEADER = "x-request-timeout"  # seconds; may only shorten the server's own deadline


class ChatHandler:
    """Answers chat requests."""

    def __init__(
        self, settings: ApiSettings, model: str, mapper: RequestMapper, service: ChatService, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._model = model
        self._mapper = mapper
        self._service = service
        self._metrics = metrics

    async def read(self, raw: bytes) -> tuple[ChatCompletionRequest, ChatRequest]:
        """The validated request. Raises RequestRefused or a ServeError."""
        if len(raw) > LARGE_BODY:
            return await self._service.run(self._read, raw)
        return self._read(raw)

    async def answer(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        deadline_s = self.deadline(request)
        async with until(deadline_s):
            raw = await read_body(request)
        return await unless_gone(request.receive, self._reply(raw, deadline_s, request.state))

    async def _reply(self, raw: bytes, deadline_s: float | None, state: State) -> Response:
        async with until(deadline_s):
            sent, chat_request = await self.read(raw)
        if not self._settings.share_cache_between_keys:
            chat_request = dataclasses.replace(chat_request, cache_salt=salt_of(state, chat_request.cache_salt))
        style = self._mapper.style(sent)
        generation = await self._service.start(chat_request, deadline_s, [state.place, *self._observers(style)])
        if sent.stream:
            return EventStream(chunks_of(generation, style), self._settings.ping_interval_s, generation.aclose)
        chunks = [chunk async for step in chunks_of(generation, style) for chunk in step]
        body = await self._service.run(encode_reply, chunks, generation.usage, style)
        return Response(body, media_type="application/json")

    def _observers(self, style: ReplyStyle) -> list[RequestObserver]:
        observers: list[RequestObserver] = [self._metrics.observe(), RequestSpans()]
        if prompt_logger.isEnabledFor(logging.INFO):
            observers.append(ReplyLog(style))
        return observers

    def _read(self, raw: bytes) -> tuple[ChatCompletionRequest, ChatRequest]:
        body, notes = (read_object(raw), ()) if self._settings.strict else read_lenient(raw)
        sent = read_request(body, self._settings.strict)
        self.check_model(sent.model)
        prompt_logger.info("prompt", extra={"messages": body["messages"], "tools": body.get("tools")})
        request = self._mapper.to_request(sent)
        return sent, dataclasses.replace(request, notes=notes + request.notes)

    def check_model(self, name: Any) -> None:
        """Raise RequestRefused (404) for a model that is not served."""
        if name != self._model and not self._settings.allow_any_model:
            raise RequestRefused(no_such_model(str(name)))

    def deadline(self, request: Request) -> float | None:
        """The end of the request's time on the clock of `time.monotonic`. Raises RequestRefused (400)."""
        limits = [self._settings.request_timeout_s] if self._settings.request_timeout_s else []
        sent = request.headers.get(TIMEOUT_HEADER)
        if sent is not None:
            try:
                limits.append(float(sent))
            except ValueError:
                limits.append(0.0)
            if not 0 < limits[-1] < float("inf"):
                raise bad(f"Invalid header '{TIMEOUT_HEADER}': expected seconds, but got '{sent}'.", None)
        return time.monotonic() + min(limits) if limits else None


def chat_router(handler: ChatHandler) -> APIRouter:
    """Route of chat completions."""
    router = APIRouter()
    router.add_api_route(
        PATH,
        handler.answer,
        methods=["POST"],
        operation_id="createChatCompletion",
        summary="Answer a conversation, calling tools.",
        openapi_extra={**json_body(ChatCompletionRequest, REQUESTS), "parameters": [_TIMEOUT_PARAMETER]},
        responses={200: _REPLY, **error_replies(400, 401, 404, 408, 413, 429, 500, 503, 504)},
    )
    return router


_TIMEOUT_PARAMETER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Extension. Seconds that this request may take; only ever shortens the server's own deadline.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_EVENTS = "Each event is `data: ` and a chunk, the last `data: [DONE]`. An error in the middle is an ErrorBody."
_REPLY = {
    "description": "The reply, or with `stream` its chunks as server-sent events.",
    "headers": REQUEST_ID,
    "content": {
        "application/json": {"schema": ref(ChatCompletion), "example": REPLY},
        "text/event-stream": {
            "schema": {"type": "string", "description": _EVENTS, "contentSchema": ref(ChatCompletionChunk)},
            "examples": STREAMS,
        },
    },
}


class ReplyLog(RequestObserver):
    """Writes the whole reply to the log of prompts when it is complete."""

    def __init__(self, style: ReplyStyle) -> None:
        self._chunker = Chunker(style)
        self._style = style
        self._chunks: list[ChatCompletionChunk] = []
        self._generation: Generation | None = None

    def admitted(self, generation: Generation) -> None:
        """Begin the choices."""
        self._generation = generation
        self._chunks += self._chunker.open(generation.n)

    def received(self, events: Sequence[ChoiceEvent]) -> None:
        """Keep what arrived."""
        self._chunks += [chunk for event in events for chunk in self._chunker.feed(event)]

    def finished(self, outcome: Outcome, error: ServeError | None) -> None:
        """Write the reply."""
        if outcome == "complete" and self._generation is not None:
            choices = fold(self._chunks, self._generation.usage, self._style).choices
            prompt_logger.info("reply", extra={"choices": msgspec.to_builtins(choices)})


async def read_body(request: Request) -> bytes:
    """The whole body; a client that does not finish it in time is refused (408)."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            # Not `request.body()`, which would keep the bytes for as long as the reply is written.
            return b"".join([piece async for piece in request.stream()])
    except TimeoutError as error:
        text = f"The request body did not arrive within {BODY_TIMEOUT_S:.0f} s."
        raise RequestRefused(ApiError(408, text, code="body_timeout", headers={"connection": "close"})) from error
