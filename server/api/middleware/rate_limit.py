"""Rate limits of one client: requests a minute (a token bucket), and concurrent requests.

A client is its key, or its address where the server requires no key. The bucket holds a minute's worth of requests and
refills continuously, so that no client waits for a full minute to pass.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, RequestRefused
from server.api.middleware.auth import client_of

MINUTE_S = 60.0
MAX_IDLE_CLIENTS = 10_000  # beyond this, clients with full buckets are dropped: a client may use many addresses
LIMITED_METHOD = "POST"
LIMITED_PREFIX = "/v1/"


@dataclass(slots=True)
class Bucket:
    """One client: the requests left in its bucket at `time_s`, and how many of its requests run."""

    remaining: float
    time_s: float
    running: int = 0


@dataclass(frozen=True, slots=True)
class ClientWindow:
    """State of a client's bucket, as sent to it. `reset_s` is the time until the bucket is full."""

    limit: int
    remaining: int
    reset_s: float

    def headers(self) -> dict[str, str]:
        """OpenAI's rate limit headers."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": as_duration(self.reset_s),
        }


class RateLimiter:
    """Buckets of all clients. 0 in `rate_limit_rpm` and `max_concurrent` is no limit; `now_s` is a monotonic clock."""

    def __init__(self, rate_limit_rpm: int, max_concurrent: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rpm = rate_limit_rpm
        self._max_concurrent = max_concurrent
        self._now_s = now_s
        self._buckets: dict[str, Bucket] = {}
        self._dropped_s = -math.inf

    def acquire(self, client: str) -> ClientWindow | None:
        """Count one request, which the caller must `release`; None without a rate. Raises RequestRefused (429)."""
        bucket = self._bucket(client)
        if self._max_concurrent and bucket.running >= self._max_concurrent:
            text = f"{bucket.running} requests of this client run already, the limit is {self._max_concurrent}."
            raise RequestRefused(_too_many(text, wait_s=1.0))
        if self._rpm and bucket.remaining < 1:
            wait_s = (1 - bucket.remaining) * MINUTE_S / self._rpm
            text = (
                f"Rate limit reached for requests per min. Limit: {self._rpm} / min. Try again in {as_duration(wait_s)}"
            )
            raise RequestRefused(_too_many(text, wait_s, self._window(bucket)))
        bucket.running += 1
        if not self._rpm:
            return None
        bucket.remaining -= 1
        return self._window(bucket)

    def hold(self, client: str) -> None:
        """Let a counted request of this client count as running until one `release` more."""
        self._bucket(client).running += 1

    def release(self, client: str) -> None:
        """End one request of this client."""
        self._buckets[client].running -= 1

    def _bucket(self, client: str) -> Bucket:
        now_s = self._now_s()
        bucket = self._buckets.get(client)
        if bucket is None:
            if len(self._buckets) >= MAX_IDLE_CLIENTS and now_s - self._dropped_s >= 1:
                self._drop_idle(now_s)
            bucket = self._buckets[client] = Bucket(float(self._rpm), now_s)
        bucket.remaining = self._refilled(bucket, now_s)
        bucket.time_s = now_s
        return bucket

    def _refilled(self, bucket: Bucket, now_s: float) -> float:
        return min(float(self._rpm), bucket.remaining + (now_s - bucket.time_s) * self._rpm / MINUTE_S)

    def _drop_idle(self, now_s: float) -> None:
        self._dropped_s = now_s
        self._buckets = {
            client: bucket
            for client, bucket in self._buckets.items()
            if bucket.running or self._refilled(bucket, now_s) < self._rpm
        }

    def _window(self, bucket: Bucket) -> ClientWindow:
        return ClientWindow(self._rpm, int(bucket.remaining), (self._rpm - bucket.remaining) * MINUTE_S / self._rpm)


@dataclass(frozen=True, slots=True)
class ClientPlace:
    """The client of a request, for what outlives the request or comes without one."""

    limiter: RateLimiter
    client: str

    def hold(self) -> Callable[[], None]:
        """Count a request of this client as running until the returned function is called."""
        self.limiter.hold(self.client)
        return partial(self.limiter.release, self.client)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a further request of this client, that runs for as long as the block. Raises RequestRefused (429)."""
        self.limiter.acquire(self.client)
        try:
            yield
        finally:
            self.limiter.release(self.client)


class RateLimitMiddleware:
    """Limits requests to the model, POST under `/v1/`; lists and health checks are not limited.

    The place of the client is `request.state.client_place`.
    """

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        self._app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A stream counts as running until its last byte, or until its client is gone."""
        if scope["type"] == "websocket":  # each of its messages is a request
            scope.setdefault("state", {})["client_place"] = ClientPlace(self._limiter, client_of(scope))
        limited = scope["type"] == "http" and scope["method"] == LIMITED_METHOD
        if not limited or not scope["path"].startswith(LIMITED_PREFIX):
            await self._app(scope, receive, send)
            return
        client = client_of(scope)
        scope.setdefault("state", {})["client_place"] = ClientPlace(self._limiter, client)
        window = self._limiter.acquire(client)

        async def add_headers(message: Message) -> None:
            if window is not None and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(window.headers())
            await send(message)

        try:
            await self._app(scope, receive, add_headers)
        finally:
            self._limiter.release(client)


def as_duration(seconds: float) -> str:
    """OpenAI's notation: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, MINUTE_S)
    return f"{int(minutes)}m{rest:.0f}s" if minutes else f"{rest:.3g}s"


def _too_many(text: str, wait_s: float, window: ClientWindow | None = None) -> ApiError:
    headers = {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    headers |= window.headers() if window else {}
    return ApiError(429, text, "requests", code="rate_limit_exceeded", headers=headers)
