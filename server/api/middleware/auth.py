"""API keys, and the limit on the size of a body."""

import hashlib
import hmac
import logging
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from starlette.datastructures import Headers, State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, RequestRefused, error_response, too_large
from server.errors import CannotStart
from server.settings import ApiSettings

logger = logging.getLogger("toolwire.api")

RELOAD_INTERVAL_S = 1.0
FILE_GRACE_S = 60.0
CLIENT = "client_key"  # key in a scope's state: hexadecimal digest of the key that was accepted
KEY_CHECK = "key_check"  # key in a WebSocket's state: raises RequestRefused once the key of the connection is removed
OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_PREFIX = "/web/"  # files of the page, which asks for the key
LOAD_PATH, UNLOAD_PATH = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"  # with a key of their own alone
FIGURES_PATHS = frozenset({"/metrics", "/v1/memory", "/v1/engines"})  # sums over the requests of all keys
MONITORING_PATHS = frozenset({*FIGURES_PATHS, "/tokenize", "/detokenize", "/docs", "/openapi.json"})


class ApiKeys:
    """API keys from the settings and from a file that may change while the server runs.

    A file that is removed or cannot be read leaves its last keys valid for FILE_GRACE_S, so that it can be replaced;
    after that none of them is. Keys are compared by their digests, in constant time.
    Raises CannotStart for a file that cannot be read, and for a list of keys without a key.
    """

    def __init__(self, listed: str, path: str, monitoring: str = "", adapters: str = "") -> None:
        self._listed, self._monitoring, self._adapters = (
            _keys(listed.split(",")),
            _keys([monitoring]),
            _keys([adapters]),
        )
        for name, value, keys in (
            ("api_key", listed, self._listed),
            ("monitoring_key", monitoring, self._monitoring),
            ("adapter_key", adapters, self._adapters),
        ):
            if value and not keys:
                raise CannotStart(f"{name} is {value!r}: no key at all; set a key, or leave the option out")
        self._path = Path(path) if path else None
        self._from_file: frozenset[str] = frozenset()
        self._digests = _digests(self._listed)
        self._stamp: tuple[int, ...] | None = None
        self._checked_s = self._read_s = time.monotonic()
        if self._path is not None:
            try:
                self._read(self._path)
            except (OSError, UnicodeDecodeError) as error:
                raise CannotStart(f"cannot read the key file {path}: {error}") from error

    @property
    def required(self) -> bool:
        """Whether requests need a key. An emptied key file refuses all requests rather than admitting all."""
        return bool(self._listed) or self._path is not None

    @property
    def has_several(self) -> bool:
        """Whether there may be clients whose requests are not each other's business."""
        return len(self._digests) > 1

    @property
    def has_monitoring_key(self) -> bool:
        """Whether the figures of the server have a key of their own."""
        return bool(self._monitoring)

    def secrets(self) -> Collection[str]:
        """The keys themselves, to be redacted in logs."""
        return self._listed | self._from_file | self._monitoring | self._adapters

    def accept(self, key: bytes) -> bool:
        """Whether this key, as it was sent, is one of them."""
        self._reload()
        return _matches(key, self._digests)

    def accept_monitoring(self, key: bytes) -> bool:
        """Whether this is the key of the figures."""
        return _matches(key, _digests(self._monitoring))

    @property
    def has_adapter_key(self) -> bool:
        """Whether anybody may load adapters."""
        return bool(self._adapters)

    def accept_for_adapters(self, key: bytes) -> bool:
        """Whether this is the key of those who load adapters."""
        return _matches(key, _digests(self._adapters))

    def _reload(self) -> None:
        now_s = time.monotonic()
        if self._path is None or now_s - self._checked_s < RELOAD_INTERVAL_S:
            return
        self._checked_s = now_s
        try:
            self._read(self._path)
        except (OSError, UnicodeDecodeError) as error:
            if now_s - self._read_s < FILE_GRACE_S:
                logger.warning("cannot read the key file, its last keys stay valid for %.0f s: %s", FILE_GRACE_S, error)
            elif self._from_file:
                logger.error("cannot read the key file, its keys are no longer valid: %s", error)
                self._replace(frozenset(), None)

    def _read(self, path: Path) -> None:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp != self._stamp:
            lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
            self._replace(_keys(line for line in lines if not line.startswith("#")), stamp)
        self._read_s = time.monotonic()

    def _replace(self, keys: frozenset[str], stamp: tuple[int, ...] | None) -> None:
        self._from_file, self._stamp = keys, stamp
        self._digests = _digests(self._listed | keys)


class AuthMiddleware:
    """Refuses requests without a key (401) and bodies beyond the limit (413)."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, max_body_bytes: int, open_metrics: bool) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._open = OPEN_PATHS | MONITORING_PATHS if open_metrics else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what this or an inner middleware refuses."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            await self._check(scope, receive, send)
        except RequestRefused as refused:
            await error_response(refused.error, scope)(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        is_open = scope["path"] in self._open or scope["path"].startswith(OPEN_PREFIX)
        if not is_open and scope.get("method") != "OPTIONS":
            self._check_key(scope, sent_key(headers))
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

    def _check_key(self, scope: Scope, key: bytes) -> None:
        keys, is_figures = self._keys, scope["path"] in FIGURES_PATHS
        if is_figures and keys.has_monitoring_key:
            _require(key, keys.accept_monitoring(key))
            return
        if scope["path"] in (LOAD_PATH, UNLOAD_PATH):
            if not keys.has_adapter_key:
                text = "Nobody may load adapters here. Name a key in --adapter-key, and a folder in --adapter-folder."
                raise RequestRefused(ApiError(403, text, code="adapter_key_required"))
            _require(key, keys.accept_for_adapters(key))
            return
        if not keys.required:
            return
        _require(key, keys.accept(key))
        if is_figures and keys.has_several:
            text = "These figures tell of the requests of every key. Name a key for them in --monitoring-key."
            raise RequestRefused(ApiError(403, text, code="monitoring_key_required"))
        scope["state"][CLIENT] = hashlib.sha256(key).hexdigest()
        if scope["type"] == "websocket":
            scope["state"][KEY_CHECK] = lambda: _require(key, keys.accept(key))


def keys_of(settings: ApiSettings) -> ApiKeys:
    """The keys of the settings. Raises CannotStart as ApiKeys does."""
    return ApiKeys(settings.api_key, settings.api_key_file, settings.monitoring_key, settings.adapter_key)


def _require(key: bytes, accepted: bool) -> None:
    """Raises RequestRefused (401) for a key that is missing or not accepted."""
    if not key:
        text = "You didn't provide an API key. Send it in an Authorization header: Authorization: Bearer YOUR_KEY"
        raise RequestRefused(ApiError(401, text, headers={"www-authenticate": "Bearer"}))
    if not accepted:
        text = "Incorrect API key provided."
        raise RequestRefused(ApiError(401, text, code="invalid_api_key", headers={"www-authenticate": "Bearer"}))


def sent_key(headers: Headers) -> bytes:
    """The key that a request brings, as bytes: of `Authorization: Bearer`, else of `x-api-key`; empty without one."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if kind.lower() == "bearer" else ""
    return (key or headers.get("x-api-key", "").strip()).encode("latin-1")  # as Headers decoded it


def client_of(scope: Scope) -> str:
    """The client that limits and caches are kept for: a digest of its accepted key, or its address without keys.

    Where no key is required a key identifies nobody: a client with a new one each time would never reach a limit.
    """
    digest: str | None = scope.get("state", {}).get(CLIENT)
    return digest or f"address {scope['client'][0] if scope.get('client') else ''}"


def salt_of(state: State, sent_salt: str) -> str:
    """Salt of the prefix cache for a request: its own, apart for each accepted key."""
    digest: str = getattr(state, CLIENT, "")
    return f"{digest}:{sent_salt}" if digest else sent_salt


def _matches(key: bytes, digests: Iterable[bytes]) -> bool:
    digest = hashlib.sha256(key).digest()
    matches = [hmac.compare_digest(digest, other) for other in digests]
    return any(matches)


def _keys(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(text.strip() for text in texts if text.strip())


def _digests(keys: Iterable[str]) -> frozenset[bytes]:
    return frozenset(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in keys)
