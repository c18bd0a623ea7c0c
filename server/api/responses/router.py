"""Routes of responses: POST, whole or as a stream, both from the same events; and those of kept responses."""

import json
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import bad
from server.api.errors import json_response
from server.api.openapi.operations import REQUEST_ID, error_replies, json_body, json_reply, ref
from server.api.reply_handler import TIMEOUT_PARAMETER, ReplyHandler
from server.api.responses.examples import REQUESTS
from server.api.responses.items import read_items
from server.api.responses.memory import ClientMemory, Context, to_kept_items
from server.api.responses.pages import ItemList, page_of
from server.api.responses.plan import ResponsePlan
from server.api.responses.schemas import ResponsesRequest, read_responses_request
from server.api.responses.state import ResponsesState
from server.api.responses.to_request import ResponsesMapper
from server.api.responses.wire import ResponseObject
from server.notes import Note

PATH = "/v1/responses"


class Deleted(msgspec.Struct):
    """A response or a conversation that is kept no more."""

    id: str
    object: str
    deleted: bool = True


class ResponseInputTokens(msgspec.Struct, tag_field="object", tag="response.input_tokens"):
    """Length of a request's prompt."""

    input_tokens: int


class ResponsesHandler:
    """Answers requests for responses."""

    def __init__(self, replies: ReplyHandler, mapper: ResponsesMapper, state: ResponsesState) -> None:
        self._replies = replies
        self._mapper = mapper
        self._state = state

    async def answer(self, request: Request) -> Response:
        """POST /v1/responses."""
        return await self._replies.answer(request, partial(self.read, request.state))

    async def read(self, state: State, raw: bytes) -> ResponsePlan:
        """The validated request with what it continues. Raises RequestRefused or a ServeError."""
        sent, notes = await self._replies.parse(self._read, raw)
        memory = self.memory(state)
        context = await memory.context(sent)
        return await self._replies.parse(partial(self._plan, sent, notes, memory, context), raw)

    async def count(self, request: Request) -> Response:
        """POST /v1/responses/input_tokens."""
        parts = await self._replies.count(request, partial(self.read, request.state))
        return json_response(ResponseInputTokens(sum(part.tokens for part in parts)))

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/responses/{id}."""
        kept = await self.memory(request.state).response(request.path_params["id"])
        return Response(kept.body, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}."""
        response_id = request.path_params["id"]
        await self.memory(request.state).delete_response(response_id)
        return json_response(Deleted(response_id, "response"))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel."""
        kept = await self.memory(request.state).response(request.path_params["id"])
        if not json.loads(kept.body)["background"]:
            raise bad("Cannot cancel a synchronous response: only those of 'background' can be cancelled.", None)
        return Response(kept.body, media_type="application/json")

    async def list_input_items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items."""
        kept = await self.memory(request.state).response(request.path_params["id"])
        return json_response(page_of(json.loads(kept.input), request.query_params))

    def memory(self, state: State) -> ClientMemory:
        """What the client of a request has kept."""
        return ClientMemory(self._state.store, state)

    def _read(self, raw: bytes) -> tuple[ResponsesRequest, tuple[Note, ...]]:
        return self._replies.read(raw, read_responses_request, ("input", "tools"), self._replies.settings.strict)

    def _plan(
        self, sent: ResponsesRequest, notes: tuple[Note, ...], memory: ClientMemory, context: Context, raw: bytes
    ) -> ResponsePlan:
        mapped = self._mapper.map(sent, read_items(context.kept), read_items(context.own), notes)
        keeps = sent.keeps and (memory.store.state != "none" or sent.store is True)
        keep = partial(memory.keep, to_kept_items(context.own)) if keeps else None
        return ResponsePlan(mapped, bool(sent.stream), keep)


def responses_router(handler: ResponsesHandler) -> APIRouter:
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
    _add_routes_of_kept(router, handler)
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
            responses={200: reply, **errors, **(error_replies(400) if path else {})},
        )


def _with_id(endpoint: Any) -> Any:
    """The endpoint with the id of its path as a parameter, for the OpenAPI document."""

    async def answer(request: Request, id: str) -> Response:
        response: Response = await endpoint(request)
        return response

    return answer


_DELETED = Deleted("resp_5yGqkD0w3XtZbN1cVfRmLpHs", "response")
_ITEMS = ItemList([{"id": "msg_1", "type": "message"}], "msg_1", "msg_1", False)
_EVENTS = "Named events; the last is `response.completed`, `response.incomplete` or `response.failed`."
_JSON: dict[str, Any] = {"application/json": {"schema": ref(ResponseObject)}}
_REPLY: dict[str, Any] = {
    "description": "The response, or with `stream` its events as server-sent events.",
    "headers": REQUEST_ID,
    "content": {**_JSON, "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}}},
}
