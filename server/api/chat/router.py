"""A chat request from its bytes to its reply: whole or as a stream, both from the same chunks."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.chat.examples import REPLY, REQUESTS, STREAMS
from server.api.chat.schemas import ChatCompletionRequest, read_request
from server.api.chat.to_reply import Chunker, ReplyStyle, chunks_of, encode_reply, fold
from server.api.chat.to_request import RequestMapper
from server.api.chat.wire import ChatCompletion, ChatCompletionChunk
from server.api.openapi.operations import REQUEST_ID, error_replies, json_body, ref
from server.api.reply_handler import TIMEOUT_PARAMETER, ReplyHandler, reply_logs
from server.api.sse import DATA_FRAMES, Framing
from server.chat_request import ChatRequest
from server.errors import ServeError
from server.service import ChoiceEvent, Generation, RequestObserver

PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """One chat request, and how its reply is written."""

    request: ChatRequest
    stream: bool
    style: ReplyStyle
    framing: Framing = DATA_FRAMES

    def observers(self) -> Sequence[RequestObserver]:
        """The log of replies, where prompts are logged."""
        return reply_logs(self._logged)

    def refused(self, error: ServeError) -> Sequence[ChatCompletionChunk]:
        """None: a status says it."""
        return ()

    def events(self, generation: Generation) -> AsyncGenerator[list[ChatCompletionChunk], None]:
        """The chunks. Raises the ServeError that ends the reply."""
        return chunks_of(generation, self.style)

    def encode(self, events: Sequence[ChatCompletionChunk], generation: Generation) -> bytes:
        """JSON of the whole reply."""
        return encode_reply(events, generation.usage, self.style)

    def _logged(self, generation: Generation, events: Sequence[ChoiceEvent]) -> Mapping[str, Any]:
        chunker = Chunker(self.style)
        chunks = chunker.open(generation.n) + [chunk for event in events for chunk in chunker.feed(event)]
        return {"choices": fold(chunks, generation.usage, self.style).choices}


class ChatHandler:
    """Answers chat requests."""

    def __init__(self, replies: ReplyHandler, mapper: RequestMapper) -> None:
        self._replies = replies
        self._mapper = mapper

    async def read(self, raw: bytes) -> ChatPlan:
        """The validated request. Raises RequestRefused or a ServeError."""
        return await self._replies.parse(self._read, raw)

    async def answer(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._replies.answer(request, self.read)

    def _read(self, raw: bytes) -> ChatPlan:
        sent, notes = self._replies.read(raw, read_request, ("messages", "tools"), self._mapper.strict)
        return ChatPlan(self._mapper.to_request(sent, notes), bool(sent.stream), self._mapper.style(sent))


def chat_router(handler: ChatHandler) -> APIRouter:
    """Route of chat completions."""
    router = APIRouter()
    router.add_api_route(
        PATH,
        handler.answer,
        methods=["POST"],
        operation_id="createChatCompletion",
        summary="Answer a conversation, calling tools.",
        openapi_extra={**json_body(ChatCompletionRequest, REQUESTS), "parameters": [TIMEOUT_PARAMETER]},
        responses={200: _REPLY, **error_replies(400, 401, 404, 408, 413, 429, 500, 503, 504)},
    )
    return router


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
