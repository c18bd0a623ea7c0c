"""How much one client may ask for: requests a minute, and requests at once. Pure ASGI, behind the keys.

A client is its key, or its address where the server wants no key. The rate is a bucket that holds a minute's worth
and refills evenly, so that a pause pays back at once and nobody waits for a full minute to turn.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, RequestRefused

MINUTE_S = 60.0
MAX_IDLE_CLIENTS = 10_000  # addresses are cheap to come by: beyond this, those who owe nothing are forgotten
COUNTED_METHOD = "POST"
COUNTED_PREFIX = "/v1/"


@dataclass(slots=True)
class Account:
    """One client: what is left in its bucket at `time_s`, and how many of its requests run."""

    left: float
    time_s: float
    running: int = 0


@dataclass(frozen=True, slots=True)
class ClientWindow:
    """What a client is told after a request was counted. `reset_s` is when its bucket is full again."""

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
    """Accounts of all clients. `rate_limit_rpm` and `max_concurrent` 0 are no limit; `now_s` is a monotonic clock."""

    def __init__(self, rate_limit_rpm: int, max_concurrent: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rpm = rate_limit_rpm
        self._max_concurrent = max_concurrent
        self._now_s = now_s
        self._accounts: dict[str, Account] = {}
        self._forgot_s = -math.inf

    def take(self, client: str) -> ClientWindow | None:
        """Count one request; raises Refused (429). Whoever took must `give_back`. None where no rate is limited."""
        account = self._account(client)
        if self._max_concurrent and account.running >= self._max_concurrent:
            text = f"{account.running} requests of this client run already, the limit is {self._max_concurrent}."
            raise RequestRefused(_too_many(text, wait_s=1.0))
        if self._rpm and account.left < 1:
            wait_s = (1 - account.left) * MINUTE_S / self._rpm
            text = (
                f"Rate limit reached for requests per min. Limit: {self._rpm} / min. Try again in {as_duration(wait_s)}"
            )
            raise RequestRefused(_too_many(text, wait_s, self._standing(account)))
        account.running += 1
        if not self._rpm:
            return None
        account.left -= 1
        return self._standing(account)

    def give_back(self, client: str) -> None:
        """One request of this client has ended."""
        self._accounts[client].running -= 1

    def _account(self, client: str) -> Account:
        now_s = self._now_s()
        account = self._accounts.get(client)
        if account is None:
            if len(self._accounts) >= MAX_IDLE_CLIENTS and now_s - self._forgot_s >= 1:
                self._forget_idle(now_s)
            account = self._accounts[client] = Account(float(self._rpm), now_s)
        account.left = self._refilled(account, now_s)
        account.time_s = now_s
        return account

    def _refilled(self, account: Account, now_s: float) -> float:
        return min(float(self._rpm), account.left + (now_s - account.time_s) * self._rpm / MINUTE_S)

    def _forget_idle(self, now_s: float) -> None:
        self._forgot_s = now_s
        self._accounts = {
            client: account
            for client, account in self._accounts.items()
            if account.running or self._refilled(account, now_s) < self._rpm
        }

    def _standing(self, account: Account) -> ClientWindow:
        return ClientWindow(self._rpm, int(account.left), (self._rpm - account.left) * MINUTE_S / self._rpm)


class RateLimitMiddleware:
    """ASGI room: counts what is asked of the model under `/v1/`; looking at models or health is free."""

    def __init__(self, app: ASGIApp, ledger: RateLimiter, by_key: bool) -> None:
        self._app = app
        self._ledger = ledger
        self._by_key = by_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A stream counts as running until its last byte, or until its client is gone."""
        counted = scope["type"] == "http" and scope["method"] == COUNTED_METHOD
        if not counted or not scope["path"].startswith(COUNTED_PREFIX):
            await self._app(scope, receive, send)
            return
        client = client_of(scope, by_key=self._by_key)
        standing = self._ledger.take(client)

        async def tell(message: Message) -> None:
            if standing is not None and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(standing.headers())
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            self._ledger.give_back(client)


def client_of(scope: Scope, *, by_key: bool) -> str:
    """A digest of the key that was sent, or the address; keys themselves are kept nowhere.

    Where any key is let in, a key says nothing: whoever sends another one each time would never reach a limit.
    """
    headers = Headers(scope=scope)
    kind, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
    address = scope["client"][0] if scope.get("client") else ""
    if not by_key or not key:
        return f"address {address}"
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def as_duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, MINUTE_S)
    return f"{int(minutes)}m{rest:.0f}s" if minutes else f"{rest:.3g}s"


def _too_many(text: str, wait_s: float, standing: ClientWindow | None = None) -> ApiError:
    headers = {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    headers |= standing.headers() if standing else {}
    return ApiError(429, text, "requests", code="rate_limit_exceeded", headers=headers)
