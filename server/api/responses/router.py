"""Routes of responses: POST, whole or as a stream, both from the same events; and those about a response."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import bad
from server.api.chat.wire import Notes, noted
from server.api.errors import RequestRefused, json_response
from server.api.openapi.operations import REQUEST_ID, error_replies, json_body, json_reply, ref
from server.api.reply_handler import TIMEOUT_PARAMETER, ReplyHandler, nothing
from server.api.responses.compaction import CompactionPlan
from server.api.responses.examples import COMPACT_REQUESTS, COMPACTED, REPLY, REQUESTS, STREAM
from server.api.responses.memory import ClientMemory
from server.api.responses.pages import EXAMPLE_ITEM, ItemList, page_of
from server.api.responses.plan import ResponsePlan
from server.api.responses.reader import PATH, LocalContext, RequestReader
from server.api.responses.reasoning_seal import SUMMARY_PREFIX
from server.api.responses.running.background import BackgroundRun, unlogged
from server.api.responses.running.event_log import EventLog, LoggedEvents, LoggedFrames
from server.api.responses.running.websocket import WebSocketHandler
from server.api.responses.schemas import ResponsesRequest
from server.api.responses.state import ResponsesState
from server.api.responses.wire import ResponseObject
from server.api.sse import EventStream
from server.prompt.window import Window
from server.service import until
from server.store.database import KeptResponse

POLL_S = 1.0  # of a background response that another server writes
MAX_DIGITS = 18  # of a sequence number that is read; longer ones are beyond the end in any case


class Deleted(msgspec.Struct):
    """A response or a conversation that is kept no more."""

    id: str
    object: str
    deleted: bool = True


class ResponseInputTokens(msgspec.Struct, tag_field="object", tag="response.input_tokens"):
    """Length of a request's prompt."""

    input_tokens: int
    toolwire: Notes | UnsetType = UNSET


class ResponsesHandler:
    """Answers requests for responses, and about those that are kept or written in the background."""

    def __init__(
        self,
        replies: ReplyHandler,
        reader: RequestReader,
        state: ResponsesState,
        window: Window,
    ) -> None:
        self._replies = replies
        self._reader = reader
        self._runs = state.runs
        self._summary_seal = state.seal.of_prefix(SUMMARY_PREFIX)
        self._window = window

    async def answer(self, request: Request) -> Response:
        """POST /v1/responses."""
        return await self._replies.handle(request, partial(self._answer, request.state))

    async def count(self, request: Request) -> Response:
        """POST /v1/responses/input_tokens."""
        count = await self._replies.count(request, partial(self._reader.read, request.state))
        return json_response(ResponseInputTokens(count.num_tokens, noted(count.notes)))

    async def compact(self, request: Request) -> Response:
        """POST /v1/responses/compact."""
        return await self._replies.answer(request, partial(self._compaction, request.state))

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/responses/{id}, as it is now or with `stream` as the events that are to come."""
        wants_stream, after = _stream_query(request.query_params)
        if wants_stream:
            return await self._resume(request, after)
        memory, response_id = self._reader.memory(request.state), request.path_params["id"]
        if run := self._runs.find(memory.owner, response_id):
            return _body_of(run)
        return Response((await memory.response(response_id)).body, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}."""
        memory, response_id = self._reader.memory(request.state), request.path_params["id"]
        await memory.delete_response(response_id)
        self._runs.forget(memory.owner, response_id)
        return json_response(Deleted(response_id, "response"))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel: the response as it has ended, now or before."""
        memory, response_id = self._reader.memory(request.state), request.path_params["id"]
        if run := self._runs.find(memory.owner, response_id):
            await run.cancel()
            return _body_of(run)
        kept = await memory.response(response_id)
        if not json.loads(kept.body)["background"]:
            raise bad("Cannot cancel a synchronous response: only those of 'background' can be cancelled.", None)
        if kept.lease_s is not None:
            kept = await memory.cancel_response(kept)
        return Response(kept.body, media_type="application/json")

    async def list_input_items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items."""
        kept = await self._reader.memory(request.state).response(request.path_params["id"])
        return json_response(page_of(json.loads(kept.input), request.query_params))

    async def _answer(self, state: State, raw: bytes, deadline_s: float | None) -> Response:
        async with until(deadline_s):
            plan = await self._reader.read(state, raw)
        if not plan.response.background:
            return await self._replies.reply(plan, deadline_s, state)
        run = await self._begin(plan, deadline_s, state, len(raw))
        return self._stream(run.log.read(-1)) if plan.stream else _body_of(run)

    async def _compaction(self, state: State, raw: bytes) -> CompactionPlan:
        body = await self._replies.parse(self._reader.parse, raw)
        plan = await self._reader.plan(state, body, raw, LocalContext("", []))
        return CompactionPlan(plan, self._summary_seal, self._window.limit)

    async def _begin(self, plan: ResponsePlan, deadline_s: float | None, state: State, num_bytes: int) -> BackgroundRun:
        """Begin a background response. It counts as a request of its client that runs until it has ended."""
        release = state.client_place.hold()

        def on_end(run: BackgroundRun) -> None:
            release()
            self._replies.metrics.count_background(run.response.status)

        num_bytes += sum(len(message.text) for message in plan.request.messages)
        generate = partial(self._replies.start, plan, deadline_s, state)
        try:
            return await self._runs.start(plan, self._reader.memory(state), generate, num_bytes, on_end)
        except BaseException:
            release()
            raise

    async def _resume(self, request: Request, after: int) -> Response:
        """The events of a background response with numbers above `after`: those there are, and those to come."""
        memory, response_id = self._reader.memory(request.state), request.path_params["id"]
        if run := self._runs.find(memory.owner, response_id):
            return self._stream(run.log.read(after))
        kept = await memory.response(response_id)
        if not json.loads(kept.body)["background"]:
            text = "Only responses of 'background' can be streamed again; leave 'stream' out to read this one."
            raise bad(text, "stream", "invalid_value")
        return self._stream(_kept_events(memory, kept, after))

    def _stream(self, steps: AsyncGenerator[list[LoggedEvents], None]) -> Response:
        return EventStream(steps, self._replies.settings.ping_interval_s, nothing, LoggedFrames())


async def _kept_events(
    memory: ClientMemory, kept: KeptResponse, after: int
) -> AsyncGenerator[list[LoggedEvents], None]:
    """The events of a background response that is not written here, once it has ended."""
    try:
        while kept.lease_s is not None:  # another server writes it
            await asyncio.sleep(POLL_S)
            kept = await memory.response(kept.id)
        packed = await memory.events(kept.id)
    except RequestRefused:
        return  # deleted meanwhile, or the database fails: the stream can be resumed
    log = EventLog.unpack(packed) if packed else unlogged(kept.body, after)
    async for events in log.read(after):
        yield events


def _body_of(run: BackgroundRun) -> Response:
    return json_response(run.response)


def _stream_query(query: Mapping[str, str]) -> tuple[bool, int]:
    """The values of `stream` and `starting_after`. Raises RequestRefused (400)."""
    stream, after = query.get("stream", "false").lower(), query.get("starting_after")
    if stream not in ("true", "false"):
        raise bad(f"Invalid value: '{stream}'. Supported values are: 'true' and 'false'.", "stream", "invalid_value")
    if after is None:
        return stream == "true", -1
    if not (after.isascii() and after.isdigit()):
        raise bad(
            "Invalid 'starting_after': expected the sequence number of an event.", "starting_after", "invalid_value"
        )
    if stream == "false":
        raise bad(
            "Invalid 'starting_after': it needs 'stream=true'.", "starting_after", "invalid_parameter_combination"
        )
    return True, int(after[:MAX_DIGITS])


def responses_router(handler: ResponsesHandler, sockets: WebSocketHandler) -> APIRouter:
    """Routes of responses."""
    router = APIRouter()
    router.add_api_route(
        PATH,
        handler.answer,
        methods=["POST"],
        operation_id="createResponse",
        summary="Answer a conversation, calling tools.",
        openapi_extra={**json_body(ResponsesRequest, REQUESTS), "parameters": [TIMEOUT_PARAMETER]},
        responses={200: _REPLY, **error_replies(400, 401, 404, 408, 413, 429, 500, 503, 504)},
    )
    router.add_api_route(
        f"{PATH}/input_tokens",
        handler.count,
        methods=["POST"],
        operation_id="countResponseInputTokens",
        summary="Count the prompt tokens of a request for a response.",
        openapi_extra=json_body(ResponsesRequest, REQUESTS),
        responses={200: json_reply(ResponseInputTokens(12)), **error_replies(400, 401, 404, 408, 413, 429, 500, 504)},
    )
    router.add_api_route(
        f"{PATH}/compact",
        handler.compact,
        methods=["POST"],
        operation_id="compactResponse",
        summary="Make a conversation shorter: the user's messages, and a summary of the rest in an opaque form.",
        openapi_extra={**json_body(ResponsesRequest, COMPACT_REQUESTS), "parameters": [TIMEOUT_PARAMETER]},
        responses={200: json_reply(COMPACTED), **error_replies(400, 401, 404, 408, 413, 429, 500, 503, 504)},
    )
    _add_routes_of_kept(router, handler)
    router.add_api_websocket_route(PATH, sockets.serve)
    return router


def _add_routes_of_kept(router: APIRouter, handler: ResponsesHandler) -> None:
    errors = error_replies(401, 404, 500, 503)
    one = {"description": "The response.", "headers": REQUEST_ID, "content": _JSON}
    for path, method, endpoint, operation, summary, reply in (
        ("", "GET", handler.retrieve, "getResponse", "A kept response.", one),
        ("", "DELETE", handler.delete, "deleteResponse", "Delete a kept response.", json_reply(_DELETED)),
        ("/cancel", "POST", handler.cancel, "cancelResponse", "Cancel a background response.", one),
        ("/input_items", "GET", handler.list_input_items, "listInputItems", "Its request's items.", json_reply(_ITEMS)),
    ):
        router.add_api_route(
            f"{PATH}/{{id}}{path}",
            _with_id(endpoint),
            methods=[method],
            operation_id=operation,
            summary=summary,
            openapi_extra={"parameters": _STREAM_PARAMETERS} if endpoint == handler.retrieve else None,
            responses={200: reply, **errors, **(error_replies(400) if method != "DELETE" else {})},
        )


def _with_id(endpoint: Any) -> Any:
    """The endpoint with the id of its path as a parameter, for the OpenAPI document."""

    async def answer(request: Request, id: str) -> Response:
        response: Response = await endpoint(request)
        return response

    return answer


_STREAM_PARAMETERS = [
    {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
    {
        "name": "stream",
        "in": "query",
        "description": "The events of a background response instead: those there are, and those to come.",
        "schema": {"type": "boolean"},
    },
    {
        "name": "starting_after",
        "in": "query",
        "description": "With `stream`: the sequence number of the event behind which it begins.",
        "schema": {"type": "integer", "minimum": 0},
    },
]
_DELETED = Deleted("resp_5yGqkD0w3XtZbN1cVfRmLpHs", "response")
_ITEMS = ItemList([EXAMPLE_ITEM], EXAMPLE_ITEM["id"], EXAMPLE_ITEM["id"], False)
_EVENTS = "Named events; the last is `response.completed`, `response.incomplete` or `response.failed`."
_JSON: dict[str, Any] = {"application/json": {"schema": ref(ResponseObject), "example": REPLY}}
_REPLY: dict[str, Any] = {
    "description": "The response, or with `stream` its events as server-sent events.",
    "headers": REQUEST_ID,
    "content": {
        **_JSON,
        "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}, "example": STREAM},
    },
}
