"""Routes of Anthropic's Messages: a reply, whole or as a stream from the same events, and the count of a prompt."""

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.chat.wire import noted
from server.api.errors import encode, json_response
from server.api.messages.errors import PATH, MessageFrames
from server.api.messages.examples import COUNT, ERRORS, REPLY, REQUESTS, STREAM
from server.api.messages.schemas import CountTokensRequest, MessagesRequest, read_counted_request, read_messages_request
from server.api.messages.to_reply import MessageStyle, MessageWriter, fold_message, message_events
from server.api.messages.to_request import MessagesMapper
from server.api.messages.wire import MessageEvent, MessageReply, TokensCount
from server.api.openapi.operations import REQUEST_ID, json_body, json_reply, ref
from server.api.reply_handler import TIMEOUT_PARAMETER, ReplyHandler, reply_logs
from server.api.sse import Framing
from server.chat_request import ChatRequest
from server.errors import ServeError
from server.service import ChoiceEvent, Generation, RequestObserver

FRAMES = MessageFrames()


@dataclass(frozen=True, slots=True)
class MessagesPlan:
    """One Messages request, and how its reply is written."""

    request: ChatRequest
    stream: bool
    style: MessageStyle
    framing: Framing = FRAMES

    def observers(self) -> Sequence[RequestObserver]:
        """The log of replies, where prompts are logged."""
        return reply_logs(self._logged)

    def refused(self, error: ServeError) -> Sequence[MessageEvent]:
        """None: a status says it."""
        return ()

    def events(self, generation: Generation) -> AsyncGenerator[list[MessageEvent], None]:
        """The events. Raises the ServeError that ends the reply."""
        return message_events(generation, self.style)

    def encode(self, events: Sequence[MessageEvent], generation: Generation) -> bytes:
        """JSON of the whole message."""
        return encode(fold_message(events))

    def _logged(self, generation: Generation, events: Sequence[ChoiceEvent]) -> Mapping[str, Any]:
        writer = MessageWriter(self.style)
        written = writer.open(generation.usage) + [one for event in events for one in writer.feed(event.parsed.event)]
        return {"content": fold_message([*written, *writer.close(generation.usage)]).content}


class MessagesHandler:
    """Answers Messages requests."""

    def __init__(self, replies: ReplyHandler, mapper: MessagesMapper) -> None:
        self._replies = replies
        self._mapper = mapper

    async def read(self, raw: bytes, counts: bool = False) -> MessagesPlan:
        """The validated request, to be answered or counted. Raises RequestRefused or a ServeError."""
        return await self._replies.parse(partial(self._read, counts), raw)

    async def answer(self, request: Request) -> Response:
        """POST /v1/messages."""
        return await self._replies.answer(request, self.read)

    async def count(self, request: Request) -> Response:
        """POST /v1/messages/count_tokens."""
        count = await self._replies.count(request, partial(self.read, counts=True))
        return json_response(TokensCount(count.num_tokens, noted(count.notes)))

    def _read(self, counts: bool, raw: bytes) -> MessagesPlan:
        validate = read_counted_request if counts else read_messages_request
        sent, notes = self._replies.read(raw, validate, ("system", "messages", "tools"), self._replies.settings.strict)
        request = self._mapper.to_request(sent)
        request = dataclasses.replace(request, notes=notes + request.notes)
        return MessagesPlan(request, bool(sent.stream), self._mapper.style(sent))


def messages_router(handler: MessagesHandler) -> APIRouter:
    """Routes of Messages."""
    router = APIRouter()
    router.add_api_route(
        PATH,
        handler.answer,
        methods=["POST"],
        operation_id="createMessage",
        summary="Answer a conversation in Anthropic's form, calling tools.",
        openapi_extra={**json_body(MessagesRequest, REQUESTS), "parameters": [TIMEOUT_PARAMETER]},
        responses={200: _REPLY, **ERRORS},
    )
    router.add_api_route(
        f"{PATH}/count_tokens",
        handler.count,
        methods=["POST"],
        operation_id="countMessageTokens",
        summary="Count a request's prompt tokens without answering it.",
        openapi_extra=json_body(CountTokensRequest, REQUESTS),
        responses={200: json_reply(COUNT), **ERRORS},
    )
    return router


_EVENTS = "Named events from `message_start` to `message_stop`. An error in the middle is an `error` event, the last."
_REPLY = {
    "description": "The reply, or with `stream` its events as server-sent events.",
    "headers": REQUEST_ID,
    "content": {
        "application/json": {"schema": ref(MessageReply), "example": REPLY},
        "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}, "example": STREAM},
    },
}
