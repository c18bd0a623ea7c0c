"""HTTP/1.1 connections: bounds on what a client may send without a body, and refusals of malformed messages.

uvicorn's httptools protocol waits without limit for the end of a head, buffers heads and trailers, and answers
malformed messages in plain text before any middleware sees them. A protocol class is the only hook that it offers.
A refusal becomes a request of its own (`REFUSAL` in its state), so that it is counted, logged and answered like others.
"""

import asyncio
import socket
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.api.errors import ApiError

MAX_HEAD_BYTES = (
    64 * 1024
)  # of a head, or of chunk sizes and trailers without a byte of body; exceeded by one read at most
HEAD_TIMEOUT_S = 30.0
HALF_CLOSED_POLL_S = 0.25
UNREAD_TIMEOUT_S = 60.0  # a client that takes no byte of its reply for so long is disconnected
UNREAD_AT_SHUTDOWN_S = 5.0
WEBSOCKET_PATHS = frozenset({b"/v1/responses"})
REFUSAL = "http_refusal"  # key in a scope's state: the ApiError of a malformed message
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def _until_close(cycle: RequestResponseCycle, app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Run `app` for a client of HTTP/1.0, which knows no transfer coding: the close of the connection ends a reply."""

    async def send_plainly(message: Any) -> None:
        cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, send_plainly)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection that sends too much (431), nothing in time, or no HTTP (400), with OpenAI's error object.

    Time runs whenever no request is being answered, and only a complete head stops it: neither blank lines nor the
    rest of a body that nobody reads keep a connection.
    """

    _timeout: asyncio.TimerHandle | None = None
    _half_closed_poll: asyncio.TimerHandle | None = None
    _unread_check: asyncio.TimerHandle | None = None
    _num_bytes = 0
    _in_body = False
    _ended = False  # what still arrives is dropped

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Parse; count the bytes since the last byte of a body."""
        self._unset_keepalive_if_required()
        if self._ended:
            return
        self._num_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._stop_timeout()
                self.handle_websocket_upgrade()
                return
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(ApiError(400, "The message is no valid HTTP/1.1 request.", code="malformed_http"))
        else:
            if self._num_bytes > MAX_HEAD_BYTES:
                text = f"The request's headers or trailers are longer than {MAX_HEAD_BYTES} bytes, the most that"
                self._refuse(ApiError(431, f"{text} this server takes.", code="headers_too_large"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Drop trailers: uvicorn would append them to the headers of a request that is already checked."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timeout: the head is complete."""
        if self._offers_upgrade():
            return
        self._stop_timeout()
        self._in_body = True
        self._num_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Restart the count of bytes that are no body."""
        self._num_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Restart the count for the next head."""
        if self._offers_upgrade():
            return
        self._in_body = False
        self._num_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Await the next head, after the rest of a body that nobody read."""
        super().on_response_complete()
        self._watch_unread(UNREAD_TIMEOUT_S)
        if self.cycle.response_complete and not self.transport.is_closing():
            self._await_head()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep a half-closed connection whose complete request has no reply yet; close any other.

        A client that has gone sends the same FIN, but resets the connection at the first byte it is sent: an interim
        reply distinguishes the two.
        """
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_started or cycle.scope["http_version"] == "1.0":
            return None
        self._end_after(cycle)
        self.transport.write(_CONTINUE)
        self._poll_half_closed()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop_timeout()
        for timer in (self._half_closed_poll, self._unread_check):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Watch that the client goes on reading."""
        super().pause_writing()
        self._watch_unread(UNREAD_TIMEOUT_S)

    def shutdown(self) -> None:
        """Close as soon as the reply is written; a complete one that nobody reads does not hold up the end."""
        super().shutdown()
        if self.cycle is None or self.cycle.response_complete:
            self._watch_unread(UNREAD_AT_SHUTDOWN_S)

    def _should_upgrade(self) -> bool:
        """Whether a WebSocket begins: where there is one, and behind no request that is still answered."""
        is_free = self.cycle is None or self.cycle.response_complete
        is_known = self.url.partition(b"?")[0] in WEBSOCKET_PATHS and self.parser.get_method() == b"GET"
        return is_free and is_known and super()._should_upgrade()

    def _get_upgrade(self) -> bytes | None:
        """`websocket` where a GET offers that and nothing else, as every client of it does; None for other offers."""
        options, offers = self._listed(b"connection"), self._listed(b"upgrade")
        is_websocket = offers == [b"websocket"] and self.parser.get_method() == b"GET"
        return b"websocket" if is_websocket and b"upgrade" in options else None

    def _listed(self, header: bytes) -> list[bytes]:
        """The items of a header in lower case, over all the lines of its name."""
        lines = (value for name, value in self.headers if name == header)
        return [item.strip().lower() for line in lines for item in line.split(b",")]

    def _offers_upgrade(self) -> bool:
        """Whether the parser stops behind a head that offers another protocol. A WebSocket is refused later."""
        if not self.parser.should_upgrade() or self.parser.get_method() == b"CONNECT":
            return False
        return self._get_upgrade() != b"websocket"

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Parse the head once more without its offer, which a server may ignore (RFC 9110 7.8), and what follows it.

        The parser takes what follows an offer for another protocol's, and would lose the request's body.
        """
        if not self._offers_upgrade():
            self._end_after(self.cycle)  # answered as HTTP/1.1; what follows it is not parsed
            return
        head = [self.parser.get_method(), b" ", self.url, f" HTTP/{self.parser.get_http_version()}\r\n".encode()]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(option for option in value.split(b",") if option.strip().lower() != b"upgrade")
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*head, b"\r\n"]))
        if rest:
            self.data_received(rest)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            cycle.chunked_encoding = False
            app = partial(_until_close, cycle, app)
        super()._start_asgi_task(cycle, app)

    def _poll_half_closed(self) -> None:
        reset = self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if reset:
            self.transport.abort()
        else:
            self._half_closed_poll = self.loop.call_later(HALF_CLOSED_POLL_S, self._poll_half_closed)

    def _watch_unread(self, timeout_s: float) -> None:
        """Abort the connection unless the bytes that wait for the client become fewer; `close` would wait for ever."""
        if self._unread_check is not None:
            self._unread_check.cancel()
        if unread := self.transport.get_write_buffer_size():
            self._unread_check = self.loop.call_later(timeout_s, self._check_unread, unread, timeout_s)

    def _check_unread(self, before: int, timeout_s: float) -> None:
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_unread(timeout_s)

    def _refuse(self, error: ApiError) -> None:
        """Answer with `error` and close: in place of the reply that is due, or after the one that is being written."""
        cycle, in_body = self.cycle, self._in_body
        if in_body and cycle.response_complete:
            self.transport.close()
            return
        if cycle is not None and not cycle.response_complete:
            self._end_after(cycle)
            if in_body:
                cycle.scope["state"][REFUSAL] = error
                cycle.message_event.set()
            return
        self._ended = True
        self._stop_timeout()
        scope: Any = {
            "type": "http", "asgi": {"version": self.asgi_version, "spec_version": "2.3"}, "http_version": "1.1",
            "server": self.server, "client": self.client, "scheme": self.scheme, "root_path": "", "method": "-",
            "path": "-", "raw_path": b"-", "query_string": b"", "headers": [], "state": {REFUSAL: error},
        }  # fmt: skip
        self.cycle = RequestResponseCycle(
            scope, self.transport, self.flow, self.logger, self.access_logger, False,
            self.server_state.default_headers, asyncio.Event(), False, False, self.on_response_complete,
        )  # fmt: skip
        self.cycle.more_body = False
        self._start_asgi_task(self.cycle, self.app)

    def _end_after(self, cycle: RequestResponseCycle) -> None:
        self._ended = True
        cycle.keep_alive = False

    def _await_head(self) -> None:
        if self._timeout is None:
            self._num_bytes = 0
            self._timeout = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
