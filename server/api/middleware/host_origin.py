"""Checks of Host and Origin: foreign web pages use neither a server without keys nor one on this machine.

A page of any site can send requests to a server that its reader's browser reaches. A `no-cors` request needs no
permission, and with DNS rebinding, where the site's own name points at the server, the page even reads the replies.
Sources: RFC 9112, section 3.2 (Host); https://fetch.spec.whatwg.org (Origin); https://www.w3.org/TR/fetch-metadata.
"""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, RequestRefused, error_response
from server.api.middleware.http_protocol import REFUSAL

LOCAL_SUFFIXES = (".local", ".internal", ".localhost")  # no public DNS has them
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:@/?#\\]+)(?::\d{0,5})?")
_FETCH_METADATA = ("sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")


class HostOriginMiddleware:
    """Refuses malformed messages, foreign hosts (where no key is required), foreign origins, and unknown WebSockets.

    `allowed_hosts` and `cors_origins` are lists separated by commas; `*` admits all.
    """

    def __init__(self, app: ASGIApp, check_host: bool, allowed_hosts: str, cors_origins: str) -> None:
        self._app = app
        self._check_host = check_host
        self._hosts = _listed(allowed_hosts.lower()) | {socket.gethostname().lower()}
        self._origins = _listed(cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is refused here, and what the HTTP protocol refuses while the body arrives."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started = False

        async def receive_unless_refused() -> Message:
            message = await receive()
            _raise_refusal(scope)
            return message

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            _raise_refusal(scope)
            self._check(scope, Headers(scope=scope))
            await self._app(scope, receive_unless_refused, watch)
        except RequestRefused as refused:
            if started:
                raise
            await error_response(refused.error, scope)(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises RequestRefused."""
        hosts = headers.getlist("host")
        if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
            text = f"The request has {len(hosts)} Host headers; HTTP/1.1 requires one."
            raise RequestRefused(ApiError(400, text, code="invalid_host"))
        host = hosts[0] if hosts else ""
        if self._check_host and hosts and not self._is_own(host):
            text = (
                f"The host {host[:100]!r} is no address and no local name, so any web page could have sent this. "
                "List the host in --allowed-hosts, or require a key (--api-key-file)."
            )
            raise RequestRefused(ApiError(403, text, code="host_not_allowed"))
        if scope["type"] == "http" and headers.get("upgrade", "").lower() == "websocket":
            text = "There is no WebSocket here; GET /v1/responses has one. Use HTTP."
            raise RequestRefused(ApiError(400, text, code="upgrade_not_supported"))
        method = scope.get("method", "GET")  # a WebSocket is opened by GET
        if not self._is_own_page(method, host, headers):
            text = "Web pages of other origins may not use this server. List theirs in --cors-origins to allow it."
            raise RequestRefused(ApiError(403, text, code="origin_not_allowed"))
        from_page = "origin" in headers or any(name in headers for name in _FETCH_METADATA)
        if from_page and method not in SAFE_METHODS and not _is_json(headers.get("content-type", "")):
            text = "A web page must declare its body: send Content-Type: application/json."
            raise RequestRefused(ApiError(415, text, code="unsupported_media_type"))

    def _is_own(self, host: str) -> bool:
        """Whether no foreign DNS can point this host here."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().removesuffix(".")
        if "*" in self._hosts or name in self._hosts or name.endswith(LOCAL_SUFFIXES):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return "." not in name
        return True

    def _is_own_page(self, method: str, host: str, headers: Headers) -> bool:
        """Whether no page sent this, or one of this server, or one that CORS admits."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if site == "same-origin" or "*" in self._origins or origin in self._origins:
            return True
        if origin is not None:
            return method == "OPTIONS" or urlsplit(origin).netloc.lower() == host.lower() != ""
        is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        is_link = is_link and headers.get("sec-fetch-dest") == "document"
        return is_link or site != "cross-site"


def _raise_refusal(scope: Scope) -> None:
    refusal = scope.get("state", {}).get(REFUSAL)
    if refusal is not None:
        raise RequestRefused(refusal)


def _listed(text: str) -> set[str]:
    return {item.strip() for item in text.split(",") if item.strip()}


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
