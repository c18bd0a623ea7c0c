"""How a connection begins: a request's head has so many bytes and so many seconds to arrive.

uvicorn's httptools protocol waits for ever for the end of a head and keeps all that comes until then, before any room
of ours sees a key. A class of its own is the way that uvicorn leaves for changing that.
"""

import asyncio
import secrets

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.api.errors import ApiError

MAX_HEAD_BYTES = 64 * 1024  # and what one read brings at most
HEAD_TIMEOUT_S = 30.0


class HeadLimitedProtocol(HttpToolsProtocol):
    """Hangs up on a head that is too long (431, in OpenAI's error object) or does not end in time."""

    _overdue: asyncio.TimerHandle | None = None
    _num_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is due."""
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        """The first byte of a head: of the first request, or of one more on the same connection."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._has_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._has_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, a body, or both."""
        super().data_received(data)
        if self._overdue is None:
            return
        self._num_bytes += len(data)
        if self._num_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_too_long())
            self.transport.close()

    def _await_head(self) -> None:
        if self._overdue is None:
            self._num_bytes = 0
            self._overdue = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _has_head(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def _too_long() -> bytes:
    text = f"The request's headers are longer than {MAX_HEAD_BYTES} bytes, the most that this server takes."
    body = ApiError(431, text, code="headers_too_large").body()
    head = (
        "HTTP/1.1 431 Request Header Fields Too Large\r\n"
        f"x-request-id: req_{secrets.token_hex(16)}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
