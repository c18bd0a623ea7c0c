"""Limits on the head of a request: its bytes, and the seconds it may take to arrive.

uvicorn's httptools protocol waits without limit for the end of a head and buffers all of it, before any middleware sees
a key. A protocol class is the only hook that uvicorn offers for this.
"""

import asyncio
import secrets

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.api.errors import ApiError

MAX_HEAD_BYTES = 64 * 1024  # exceeded by one read at most
HEAD_TIMEOUT_S = 30.0


class HeadLimitedProtocol(HttpToolsProtocol):
    """Closes the connection if a head is too long (431, with OpenAI's error object) or does not end in time."""

    _timeout: asyncio.TimerHandle | None = None
    _num_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first head."""
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        """Await the rest of a head: of the first request, or of another on the same connection."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Stop the timeout: the head is complete."""
        self._stop_timeout()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeout."""
        self._stop_timeout()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head; those of a body are not limited here."""
        super().data_received(data)
        if self._timeout is None:
            return
        self._num_bytes += len(data)
        if self._num_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_too_long())
            self.transport.close()

    def _await_head(self) -> None:
        if self._timeout is None:
            self._num_bytes = 0
            self._timeout = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None


def _too_long() -> bytes:
    text = f"The request's headers are longer than {MAX_HEAD_BYTES} bytes, the most that this server takes."
    body = ApiError(431, text, code="headers_too_large").body()
    head = (
        "HTTP/1.1 431 Request Header Fields Too Large\r\n"
        f"x-request-id: req_{secrets.token_hex(16)}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
