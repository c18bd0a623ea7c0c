"""WebSocket connections: bounds on what they hold of messages that are not complete, and an end without cut replies.

Pings, which uvicorn sends every 20 s, end a connection whose client is gone or takes nothing.
"""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from server.runtime.byte_budget import ByteBudget

DRAINED = "drained"  # key in a scope's state: set when the server ends; a connection closes between two replies then
MESSAGE_TOO_BIG, TRY_AGAIN_LATER = 1009, 1013
MAX_FRAGMENTS = 1024  # of one message: each takes some 40 bytes more than it holds

# uvicorn would log each URL, whose query may hold anything; `RequestLogMiddleware` logs connections.
_logger = logging.getLogger("toolwire.websocket")
_logger.setLevel(logging.WARNING)


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """Closes a connection (1013) where the incomplete messages of all connections are beyond `budget`."""

    def __init__(self, budget: ByteBudget, app_state: dict[str, Any], **options: Any) -> None:
        self._budget = budget
        self._unfinished_bytes = 0
        self._drained = asyncio.Event()
        super().__init__(app_state={**app_state, DRAINED: self._drained}, **options)
        self.logger = _logger

    def data_received(self, data: bytes) -> None:
        """Count the bytes until their message is complete."""
        if not self._budget.take(len(data)):
            self._refuse(TRY_AGAIN_LATER, "the server holds too many incomplete messages")
            return
        self._unfinished_bytes += len(data)
        super().data_received(data)
        if not self.handshake_complete:  # a head; its length is bounded
            self._free()

    def send_receive_event_to_app(self) -> None:
        """Give the bytes of a complete message back: the application counts it."""
        super().send_receive_event_to_app()
        self._free()

    def handle_cont(self, event: Frame) -> None:
        """Bound the fragments of a message."""
        if len(self.frames) >= MAX_FRAGMENTS:
            self._refuse(MESSAGE_TOO_BIG, f"a message may have {MAX_FRAGMENTS} fragments")
        elif not self.close_sent:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """Give the bytes of a ping back, unless it comes within a message."""
        super().handle_ping()
        self._free_between_messages()

    def handle_pong(self, event: Frame) -> None:
        """The same."""
        super().handle_pong(event)
        self._free_between_messages()

    def keepalive_timeout(self) -> None:
        """Abort: a client that takes nothing would never let the connection close."""
        super().keepalive_timeout()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give everything back."""
        super().connection_lost(exc)
        self._free()

    def shutdown(self) -> None:
        """Have the application close the connection when its reply is complete."""
        if self.handshake_complete and not self.close_sent:
            self._drained.set()
        else:
            super().shutdown()

    def _refuse(self, code: int, reason: str) -> None:
        if not self.handshake_complete:
            self.transport.abort()
        elif not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    def _free_between_messages(self) -> None:
        if not self.frames:
            self._free()

    def _free(self) -> None:
        self._budget.free(self._unfinished_bytes)
        self._unfinished_bytes = 0
