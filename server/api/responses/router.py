"""POST /v1/responses: whole or as a stream, both from the same events."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import read_lenient, read_object
from server.api.middleware.request_log import prompt_logger
from server.api.openapi.operations import REQUEST_ID, error_replies, json_body, ref
from server.api.reply_handler import TIMEOUT_PARAMETER, ReplyHandler
from server.api.responses.examples import REQUESTS
from server.api.responses.items import read_items
from server.api.responses.plan import ResponsePlan
from server.api.responses.schemas import ResponsesRequest, read_responses_request
from server.api.responses.to_request import ResponsesMapper
from server.api.responses.wire import ResponseObject

PATH = "/v1/responses"


class ResponsesHandler:
    """Answers requests for responses."""

    def __init__(self, replies: ReplyHandler, mapper: ResponsesMapper) -> None:
        self._replies = replies
        self._mapper = mapper

    async def answer(self, request: Request) -> Response:
        """POST /v1/responses."""
        return await self._replies.answer(request, self.read)

    async def read(self, raw: bytes) -> ResponsePlan:
        """The validated request. Raises RequestRefused or a ServeError."""
        return await self._replies.parse(self._read, raw)

    def _read(self, raw: bytes) -> ResponsePlan:
        strict = self._replies.settings.strict
        body, notes = (read_object(raw), ()) if strict else read_lenient(raw)
        sent = read_responses_request(body, strict)
        self._replies.check_model(sent.model)
        prompt_logger.info("prompt", extra={"input": body.get("input"), "tools": body.get("tools")})
        mapped = self._mapper.map(sent, (), read_items(sent.input), notes)
        return ResponsePlan(mapped, bool(sent.stream), None)


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
    return router


_EVENTS = "Named events; the last is `response.completed`, `response.incomplete` or `response.failed`."
_REPLY: dict[str, Any] = {
    "description": "The response, or with `stream` its events as server-sent events.",
    "headers": REQUEST_ID,
    "content": {
        "application/json": {"schema": ref(ResponseObject)},
        "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}},
    },
}
