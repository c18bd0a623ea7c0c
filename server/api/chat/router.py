"""A chat request from its bytes to its reply: whole or as a stream, both from the same chunks."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import bad, read_object
from server.api.chat.examples import REPLY, REQUESTS, STREAMS
from server.api.chat.schemas import ChatCompletionRequest, read_request
from server.api.chat.to_reply import Chunker, ReplyStyle, fold
from server.api.chat.to_request import RequestMapper
from server.api.chat.wire import ChatCompletion, ChatCompletionChunk
from server.api.errors import ApiError, RequestRefused, encode, no_such_model
from server.api.metrics import Metrics, RequestMetrics
from server.api.middleware.request_log import prompt_logger
from server.api.middleware.tracing import traced
from server.api.openapi.operations import REQUEST_ID, error_replies, json_body, ref
from server.api.sse import EventStream, unless_gone
from server.chat_request import ChatRequest
from server.errors import ServeError
from server.service import ChatService, Generation
from server.settings import ApiSettings

PATH = "/v1/chat/completions"
BODY_TIMEOUT_S = 60.0
LARGE_BODY = 64 * 1024  # bytes; larger ones are validated off the event loop
TIMEOUT_HEADER = "x-request-timeout"  # seconds; may only shorten the server's own deadline


class ChatHandler:
    """Answers chat requests."""

    def __init__(
        self, settings: ApiSettings, model: str, asking: RequestMapper, answerer: ChatService, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._model = model
        self._asking = asking
        self._answerer = answerer
        self._metrics = metrics

    async def read(self, request: Request) -> tuple[ChatCompletionRequest, ChatRequest]:
        """The validated request; raises Refused or a ServeError."""
        raw = await read_body(request)
        if len(raw) > LARGE_BODY:
            return await asyncio.to_thread(self._read, raw)
        return self._read(raw)

    async def answer(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        deadline_s = self._deadline(request)
        asked, ask = await self.read(request)
        style = self._asking.style(asked)
        if not asked.stream:
            body = await unless_gone(request.receive, self._whole(ask, style, deadline_s))
            return Response(body, media_type="application/json")
        watch = self._metrics.watch()
        try:
            answer = await unless_gone(request.receive, self._answerer.admit(ask, deadline_s))
        except BaseException as error:
            watch.abandon(error)
            raise
        steps = traced(logged(self._steps(answer, style, watch), answer, style), answer)

        async def release() -> None:
            await answer.aclose()
            watch.close(PATH, "cancelled", answer.tally)  # has been closed, unless no step was ever asked for

        return EventStream(steps, self._settings.ping_interval_s, release)

    async def _whole(self, ask: ChatRequest, style: ReplyStyle, deadline_s: float | None) -> bytes:
        watch = self._metrics.watch()
        try:
            answer = await self._answerer.admit(ask, deadline_s)
        except BaseException as error:
            watch.abandon(error)
            raise
        steps = traced(logged(self._steps(answer, style, watch), answer, style), answer)
        chunks = [chunk async for step in steps for chunk in step]
        return encode(fold(chunks, answer.tally, style))

    async def _steps(
        self, answer: Generation, style: ReplyStyle, watch: RequestMetrics
    ) -> AsyncGenerator[list[ChatCompletionChunk], None]:
        """The chunks of the reply, a list for what comes together."""
        watch.admitted(constrained=answer.prepared.generates[0].constraint is not None)
        chunker = Chunker(style, dropped_messages=answer.prepared.dropped_messages)
        outcome = "cancelled"
        try:
            yield chunker.open(answer.n)
            async with aclosing(answer.steps()) as steps:
                async for heard in steps:
                    watch.step(heard)
                    if chunks := [chunk for one in heard for chunk in chunker.feed(one)]:
                        yield chunks
            if chunks := chunker.close(answer.tally):
                yield chunks
            outcome = "200"
        except ServeError:
            outcome = "failed"
            raise
        finally:
            await answer.aclose()
            watch.close(PATH, outcome, answer.tally)

    def _read(self, raw: bytes) -> tuple[ChatCompletionRequest, ChatRequest]:
        body = read_object(raw)
        asked = read_request(body, self._settings.strict)
        self.check_model(asked.model)
        prompt_logger.info("prompt", extra={"messages": body["messages"], "tools": body.get("tools")})
        return asked, self._asking.ask(asked, body)

    def check_model(self, name: Any) -> None:
        """Raises Refused (404) for a model that is not served."""
        if name != self._model and not self._settings.allow_any_model:
            raise RequestRefused(no_such_model(str(name)))

    def _deadline(self, request: Request) -> float | None:
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


async def logged(
    steps: AsyncGenerator[list[ChatCompletionChunk], None], answer: Generation, style: ReplyStyle
) -> AsyncGenerator[list[ChatCompletionChunk], None]:
    """The same steps; with `--log-prompts` the whole reply is kept, and written to the log when it has ended."""
    keep = prompt_logger.isEnabledFor(logging.INFO)
    written: list[ChatCompletionChunk] = []
    async with aclosing(steps):
        async for chunks in steps:
            if keep:
                written += chunks
            yield chunks
    if keep:
        choices = msgspec.to_builtins(fold(written, answer.tally, style).choices)
        prompt_logger.info("reply", extra={"choices": choices})


async def read_body(request: Request) -> bytes:
    """The whole body; a client that does not finish it in time is refused (408)."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError as error:
        text = f"The request body did not arrive within {BODY_TIMEOUT_S:.0f} s."
        raise RequestRefused(ApiError(408, text, code="body_timeout", headers={"connection": "close"})) from error
