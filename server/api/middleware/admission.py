"""Admission of requests to the API process: their number and the bytes of their bodies, from the first byte on."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import RequestRefused, error_of
from server.errors import QueueFull
from server.runtime.heap import trim_heap
from server.service import RequestObserver

ADMITTED_METHOD = "POST"
TRIM_BYTES = 1 << 18  # of bodies, after which the heap is trimmed


class Admission:
    """Counts of the requests that are read and prepared, which have not gone to the engine yet."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.num_requests = 0
        self.num_bytes = 0


class PendingRequest(RequestObserver):
    """Place of one request, left when it goes to the engine, is answered or is given up by its client.

    Raises RequestRefused (429) where there is no place.
    """

    def __init__(self, admission: Admission, declared_bytes: int) -> None:
        self._admission = admission
        self.num_bytes = 0
        self._left = False
        if admission.num_requests >= admission.max_requests:
            text = f"{admission.num_requests} requests are being read and prepared, the most that this server takes"
            raise RequestRefused(error_of(QueueFull(f"{text} (--max-pending-requests); retry shortly")))
        self._check_bytes(declared_bytes)
        admission.num_requests += 1

    def received_body(self, num_bytes: int) -> None:
        """Count a piece of the body that has arrived."""
        self._check_bytes(num_bytes)
        self.num_bytes += num_bytes
        self._admission.num_bytes += num_bytes

    def prepared(self) -> None:
        """The request goes to the engine, whose own queue is bounded."""
        self.leave()

    def leave(self) -> None:
        """Free the place; does nothing the second time."""
        if not self._left:
            self._left = True
            self._admission.num_requests -= 1
            self._admission.num_bytes -= self.num_bytes

    def _check_bytes(self, num_bytes: int) -> None:
        if self._admission.num_bytes + num_bytes > self._admission.max_bytes:
            text = f"the bodies of requests being prepared take {self._admission.num_bytes} bytes, and with this one"
            text = f"{text} more than the {self._admission.max_bytes} of --max-pending-bytes; retry shortly"
            raise RequestRefused(error_of(QueueFull(text)))


class AdmissionMiddleware:
    """Refuses POST requests beyond the limits at once (429), before their bodies are read.

    The place of an admitted request is `request.state.place`; a WebSocket has `state["admission"]`.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission
        self._untrimmed_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting the bytes of its body as they arrive."""
        if scope["type"] == "websocket":  # its messages are admitted one by one
            scope["state"]["admission"] = self._admission
        if scope["type"] != "http" or scope["method"] != ADMITTED_METHOD:
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        place = PendingRequest(self._admission, int(declared) if declared.isdigit() else 0)

        async def count() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                place.received_body(len(message.get("body", b"")))
            return message

        scope["state"]["place"] = place
        try:
            await self._app(scope, count, send)
        finally:
            place.leave()
            self._trim_after(place.num_bytes)

    def _trim_after(self, num_bytes: int) -> None:
        """Have the heap trimmed, in a thread: 18 prompts of up to 15 MiB left 110 MiB of freed memory."""
        self._untrimmed_bytes += num_bytes
        if self._untrimmed_bytes >= TRIM_BYTES:
            self._untrimmed_bytes = 0
            asyncio.get_running_loop().run_in_executor(None, trim_heap)
