"""Route of Completions: whole or as a stream, both from the same chunks."""

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.chat.wire import CompletionDetails, PromptDetails, Usage
from server.api.completions.schemas import CompletionsRequest, read_completions_request
from server.api.completions.to_reply import CompletionStyle, CompletionWriter, completion_chunks, fold_completion
from server.api.completions.to_request import CompletionsMapper
from server.api.completions.wire import Completion, CompletionChoice
from server.api.errors import encode
from server.api.openapi.operations import REQUEST_ID, error_replies, json_body, ref
from server.api.reply_handler import TIMEOUT_PARAMETER, ReplyHandler, reply_logs
from server.api.sse import DATA_FRAMES, Framing
from server.chat_request import ChatRequest
from server.errors import ServeError
from server.service import ChoiceEvent, Generation, RequestObserver

PATH = "/v1/completions"


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """One Completions request, and how its reply is written."""

    request: ChatRequest
    stream: bool
    style: CompletionStyle
    framing: Framing = DATA_FRAMES

    def observers(self) -> Sequence[RequestObserver]:
        """The log of replies, where prompts are logged."""
        return reply_logs(self._logged)

    def refused(self, error: ServeError) -> Sequence[Completion]:
        """None: a status says it."""
        return ()

    def events(self, generation: Generation) -> AsyncGenerator[list[Completion], None]:
        """The chunks. Raises the ServeError that ends the reply."""
        return completion_chunks(generation, self.style)

    def encode(self, events: Sequence[Completion], generation: Generation) -> bytes:
        """JSON of the whole reply."""
        return encode(fold_completion(events, generation.usage))

    def _logged(self, generation: Generation, events: Sequence[ChoiceEvent]) -> Mapping[str, Any]:
        writer = CompletionWriter(self.style, generation.n)
        chunks = writer.open() + [chunk for event in events for chunk in writer.feed(event)]
        return {"choices": fold_completion(chunks, generation.usage).choices}


class CompletionsHandler:
    """Answers Completions requests."""

    def __init__(self, replies: ReplyHandler, mapper: CompletionsMapper) -> None:
        self._replies = replies
        self._mapper = mapper

    async def read(self, raw: bytes) -> CompletionPlan:
        """The validated request. Raises RequestRefused or a ServeError."""
        return await self._replies.parse(self._read, raw)

    async def answer(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._replies.answer(request, self.read)

    def _read(self, raw: bytes) -> CompletionPlan:
        strict = self._replies.settings.strict
        sent, notes = self._replies.read(raw, read_completions_request, ("prompt",), strict)
        request = dataclasses.replace(self._mapper.to_request(sent), notes=notes)
        return CompletionPlan(request, bool(sent.stream), self._mapper.style(sent))


def completions_router(handler: CompletionsHandler) -> APIRouter:
    """Route of Completions."""
    router = APIRouter()
    router.add_api_route(
        PATH,
        handler.answer,
        methods=["POST"],
        operation_id="createCompletion",
        summary="Continue a prompt as it stands.",
        openapi_extra={**json_body(CompletionsRequest, _REQUESTS), "parameters": [TIMEOUT_PARAMETER]},
        responses={200: _REPLY, **error_replies(400, 401, 404, 408, 413, 429, 500, 503, 504)},
    )
    return router


_REQUESTS: Mapping[str, Any] = {
    "text": {"model": "toolwire-demo", "prompt": "Once upon a time", "max_tokens": 32},
    "several": {"model": "toolwire-demo", "prompt": ["One,", "Two,"], "n": 2, "stream": True},
    "token ids": {"model": "toolwire-demo", "prompt": [9707, 11], "echo": True},
    "scored prompt": {"model": "toolwire-demo", "prompt": "It is sunny.", "echo": True, "logprobs": 1, "max_tokens": 0},
    "fill in the middle": {"model": "toolwire-demo", "prompt": "def add(a, b):\n", "suffix": "\n    return total\n"},
}
_EXAMPLE = Completion(
    "cmpl-b3Kd92mXqLw07TzVnRfYpGhA",
    1790000000,
    "toolwire-demo",
    [CompletionChoice(0, " there was a server.", finish_reason="stop")],
    usage=Usage(4, 6, 10, PromptDetails(), CompletionDetails()),
)
_STREAM = b"".join(
    map(
        DATA_FRAMES.frame,
        (
            Completion(_EXAMPLE.id, _EXAMPLE.created, _EXAMPLE.model, [CompletionChoice(0, " there was a server.")]),
            Completion(_EXAMPLE.id, _EXAMPLE.created, _EXAMPLE.model, [CompletionChoice(0, "", finish_reason="stop")]),
        ),
    )
)
_EVENTS = "Each event is `data: ` and a chunk in the form of the reply, the last `data: [DONE]`."
_REPLY = {
    "description": "The reply, or with `stream` its chunks as server-sent events.",
    "headers": REQUEST_ID,
    "content": {
        "application/json": {"schema": ref(Completion), "example": msgspec.to_builtins(_EXAMPLE)},
        "text/event-stream": {
            "schema": {"type": "string", "description": _EVENTS},
            "example": (_STREAM + DATA_FRAMES.end).decode(),
        },
    },
}
