"""Log of requests: one line when a request has ended, and the logger of prompts and replies."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.logs import PROMPT_LOGGER

access_logger = logging.getLogger("toolwire.access")
prompt_logger = logging.getLogger(PROMPT_LOGGER)

QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})  # polled every few seconds


class RequestLogMiddleware:
    """Logs method, path, status, seconds and bytes of a request when it has ended, however it ends.

    Neither the query string nor any header is written: keys travel in both.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting what is sent back."""
        if scope["type"] != "http" or scope["path"] in QUIET_PATHS:
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status, num_bytes, outcome = 0, 0, "cut off"

        async def watch(message: Message) -> None:
            nonlocal status, num_bytes, outcome
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    outcome = "complete"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(time.perf_counter() - started_s, 4),
                "bytes": num_bytes,
                "outcome": outcome,
            }
            access_logger.info("request", extra=fields)
