"""API keys, and the limit on the size of a body."""

import hashlib
import hmac
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, RequestRefused, error_response, too_large
from server.errors import CannotStart

logger = logging.getLogger("toolwire.api")

RELOAD_INTERVAL_S = 1.0
OPEN_PATHS = frozenset({"/", "/health", "/ready"})
MONITORING_PATHS = frozenset({"/metrics", "/v1/memory", "/tokenize", "/detokenize", "/docs", "/openapi.json"})


class ApiKeys:
    """API keys from the settings and from a file that may change while the server runs.

    Only digests are kept, and they are compared in constant time. Raises CannotStart for a file that cannot be read.
    """

    def __init__(self, listed: str, path: str) -> None:
        self._listed = _digests(listed.split(","))
        self._path = Path(path) if path else None
        self._from_file: frozenset[bytes] = frozenset()
        self._stamp: tuple[int, int] | None = None
        self._checked_s = -RELOAD_INTERVAL_S
        if self._path is not None:
            try:
                self._from_file = self._read(self._path)
            except (OSError, UnicodeDecodeError) as error:
                raise CannotStart(f"cannot read the key file {path}: {error}") from error

    @property
    def required(self) -> bool:
        """Whether requests need a key. An emptied key file refuses all requests rather than admitting all."""
        return bool(self._listed) or self._path is not None

    def accept(self, key: str) -> bool:
        """Whether this key is one of them."""
        self._reload()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, other) for other in self._listed | self._from_file]
        return any(matches)

    def _reload(self) -> None:
        now_s = time.monotonic()
        if self._path is None or now_s - self._checked_s < RELOAD_INTERVAL_S:
            return
        self._checked_s = now_s
        try:
            self._from_file = self._read(self._path)
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("cannot read the key file, its last keys stay valid: %s", error)

    def _read(self, path: Path) -> frozenset[bytes]:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return self._from_file
        keys = _digests(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
        self._stamp = stamp
        return keys


class AuthMiddleware:
    """Refuses requests without a key (401) and bodies beyond the limit (413)."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, max_body_bytes: int, open_metrics: bool) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._open = OPEN_PATHS | MONITORING_PATHS if open_metrics else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what this or an inner middleware refuses."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._check(scope, receive, send)
        except RequestRefused as refused:
            await error_response(refused.error)(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._keys.required and scope["path"] not in self._open and scope["method"] != "OPTIONS":
            self._check_key(headers)
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise RequestRefused(too_large(self._max_body_bytes))
        num_bytes = 0

        async def count() -> Message:
            nonlocal num_bytes
            message = await receive()
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                if num_bytes > self._max_body_bytes:
                    raise RequestRefused(too_large(self._max_body_bytes))
            return message

        await self._app(scope, count, send)

    def _check_key(self, headers: Headers) -> None:
        kind, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else ""
        key = key or headers.get("x-api-key", "")
        if not key:
            text = "You didn't provide an API key. Send it in an Authorization header: Authorization: Bearer YOUR_KEY"
            raise RequestRefused(ApiError(401, text, headers={"www-authenticate": "Bearer"}))
        if not self._keys.accept(key):
            text = "Incorrect API key provided."
            raise RequestRefused(ApiError(401, text, code="invalid_api_key", headers={"www-authenticate": "Bearer"}))


def _digests(keys: Iterable[str]) -> frozenset[bytes]:
    return frozenset(hashlib.sha256(key.strip().encode()).digest() for key in keys if key.strip())
