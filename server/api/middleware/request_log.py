"""Outermost middleware: id, log line and count of every request; the logger of prompts and replies."""

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import Envelope
from server.api.logs import PROMPT_LOGGER, request_id_in_logs
from server.api.session_headers import STATE as SESSION_HEADERS
from server.api.session_headers import session_headers

access_logger = logging.getLogger("toolwire.access")
prompt_logger = logging.getLogger(PROMPT_LOGGER)

QUIET_PATHS = frozenset({"/health", "/ready", "/metrics", "/v1/memory"})  # polled every few seconds
QUIET_PREFIX = "/web/"  # files of the page
SWITCHING_PROTOCOLS = 101  # of a WebSocket that was accepted; its messages are counted one by one
QUIET_STATUSES = frozenset({200, 304, 503})  # their normal replies: neither logged nor counted
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestLogMiddleware:
    """Logs and counts every reply, those of the error boundary and of refusals included, and stamps `x-request-id`.

    `count(path, outcome)`: the outcome is the status, `failed` (an error after the status was sent) or `cancelled` (the
    client left before the last byte). `envelope_of` gives the envelope of a request's errors where that is not
    OpenAI's. Neither the query string nor any header is logged: keys travel in both.
    """

    def __init__(
        self,
        app: ASGIApp,
        count: Callable[[str, str], None],
        envelope_of: Callable[[Scope], Envelope | None] = lambda _: None,
    ) -> None:
        self._app = app
        self._count = count
        self._envelope_of = envelope_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The id is the client's own where it sent a well-formed one."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers_sent = Headers(scope=scope)
        sent = headers_sent.get("x-request-id", "")
        request_id = sent if REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(16)}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["envelope"] = self._envelope_of(scope)
        state[SESSION_HEADERS] = session_headers(headers_sent)
        started_s = time.perf_counter()
        status, num_bytes, complete = 500, 0, False  # an exception that gets so far is answered 500 by Starlette

        async def watch(message: Message) -> None:
            nonlocal status, num_bytes, complete
            kind = message["type"].removeprefix("websocket.")
            if kind in ("http.response.start", "accept"):
                status = message.get("status", SWITCHING_PROTOCOLS)
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["request-id"] = request_id
            elif kind == "http.response.body":
                num_bytes += len(message.get("body", b""))
                complete = not message.get("more_body", False)
            elif kind == "send":
                num_bytes += len(message.get("text") or message.get("bytes") or b"")
            await send(message)

        with request_id_in_logs(request_id):
            try:
                await self._app(scope, receive, watch)
            finally:
                failed = status == 200 and state.get("failed", False)
                complete = complete or status in (500, SWITCHING_PROTOCOLS)
                outcome = "failed" if failed else "complete" if complete else "cut off"
                self._record(scope, status, round(time.perf_counter() - started_s, 4), num_bytes, outcome)

    def _record(self, scope: Scope, status: int, seconds: float, num_bytes: int, outcome: str) -> None:
        is_quiet = scope["path"] in QUIET_PATHS or scope["path"].startswith(QUIET_PREFIX)
        if is_quiet and status in QUIET_STATUSES:
            return
        counted = {"complete": str(status), "cut off": "cancelled"}
        self._count(scope["path"], counted.get(outcome, outcome))
        fields = {
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"],
            "status": status,
            "seconds": seconds,
            "bytes": num_bytes,
            "outcome": outcome,
        }
        access_logger.info("request", extra=fields)
