"""Outermost middleware: gives a request its id and turns an unhandled exception into a 500.

All middleware here is pure ASGI: Starlette's BaseHTTPMiddleware would put a queue between a stream and its client.
"""

import logging
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import error_response, unexpected
from server.api.logs import request_id_in_logs

logger = logging.getLogger("toolwire.api")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class ErrorBoundary:
    """Fails a request alone, whatever it raises, and stamps `x-request-id` on every reply."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The id is the client's own where it sent a well-formed one."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(16)}"
        started = False

        async def stamp(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        scope.setdefault("state", {})["request_id"] = request_id
        with request_id_in_logs(request_id):
            try:
                await self._app(scope, receive, stamp)
            except Exception:
                logger.exception("unhandled exception")
                if not started:
                    await error_response(unexpected())(scope, receive, stamp)
