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
LOOKING_PATHS = frozenset({"/metrics", "/v1/memory", "/tokenize", "/detokenize", "/docs", "/openapi.json"})


class ApiKeys:
    """The keys that open the API, from the settings and from a file that may change while the server runs.

    Only their digests are kept, and comparing takes the same time whichever key comes close.
    """

    def __init__(self, listed: str, path: str) -> None:
        self._listed = _digests(listed.split(","))
        self._path = Path(path) if path else None
        self._from_file: frozenset[bytes] = frozenset()
        self._stamp: tuple[int, int] | None = None
        self._looked_s = -RELOAD_INTERVAL_S
        if self._path is not None:
            try:
                self._from_file = self._read(self._path)
            except (OSError, UnicodeDecodeError) as error:
                raise CannotStart(f"cannot read the key file {path}: {error}") from error

    @property
    def wanted(self) -> bool:
        """Whether any request needs a key. A key file that was emptied locks the door rather than opening it."""
        return bool(self._listed) or self._path is not None

    def fits(self, key: str) -> bool:
        """Whether this key opens."""
        self._look_again()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        fitting = [hmac.compare_digest(digest, other) for other in self._listed | self._from_file]
        return any(fitting)

    def _look_again(self) -> None:
        now_s = time.monotonic()
        if self._path is None or now_s - self._looked_s < RELOAD_INTERVAL_S:
            return
        self._looked_s = now_s
        try:
            self._from_file = self._read(self._path)
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("the key file cannot be read, its last keys stay valid: %s", error)

    def _read(self, path: Path) -> frozenset[bytes]:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return self._from_file
        keys = _digests(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
        self._stamp = stamp
        return keys


class AuthMiddleware:
    """Lets in who has a key, and no body beyond the limit."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, max_body_bytes: int, open_metrics: bool) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._open = OPEN_PATHS | LOOKING_PATHS if open_metrics else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what it, or the room behind it, refuses."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._admit(scope, receive, send)
        except RequestRefused as refused:
            await error_response(refused.fault)(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._keys.wanted and scope["path"] not in self._open and scope["method"] != "OPTIONS":
            self._check_key(headers)
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
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
        if not self._keys.fits(key):
            text = "Incorrect API key provided."
            raise RequestRefused(ApiError(401, text, code="invalid_api_key", headers={"www-authenticate": "Bearer"}))


def _digests(keys: Iterable[str]) -> frozenset[bytes]:
    return frozenset(hashlib.sha256(key.strip().encode()).digest() for key in keys if key.strip())
