"""Turn an unhandled exception into a 500, for the layers outside to see like any other reply.

All middleware here is pure ASGI: Starlette's BaseHTTPMiddleware would put a queue between a stream and its client.
"""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import error_response, unexpected

logger = logging.getLogger("toolwire.api")


class ErrorBoundary:
    """Fails a request alone, whatever it raises."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Log the traceback; the reply that has begun already stays incomplete, and counts as failed."""
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] in ("http.response.start", "websocket.accept")
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            if scope["type"] not in ("http", "websocket"):
                raise
            logger.exception("unhandled exception")
            scope["state"]["failed"] = True
            if not started:
                await error_response(unexpected(), scope)(scope, receive, watch)
