"""Requests a minute and concurrent requests, by client; the test sets the clock."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api.errors import RequestRefused
from server.api.middleware.rate_limit import MAX_IDLE_CLIENTS, RateLimiter, RateLimitMiddleware, as_duration
from tests.api.conftest import MODEL, Serve
from tests.backends.scripted import Script

Reply = Callable[..., Script]


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def refusal(limiter: RateLimiter, client: str) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        limiter.acquire(client)
    return caught.value


def test_the_bucket_empties_and_refills_continuously() -> None:
    clock = Clock()
    limiter = RateLimiter(60, 0, clock)
    windows = [limiter.acquire("a") for _ in range(60)]
    assert [window.remaining for window in windows if window] == list(range(59, -1, -1))
    refused = refusal(limiter, "a").error
    assert (refused.status, refused.type, refused.code) == (429, "requests", "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now_s += 1
    assert limiter.acquire("a") is not None
    refusal(limiter, "a")


def test_a_refused_request_costs_nothing() -> None:
    """Counting refusals would lock out a client that retries too early for good."""
    clock = Clock()
    limiter = RateLimiter(1, 0, clock)
    limiter.acquire("a")
    for _ in range(100):
        refusal(limiter, "a")
    clock.now_s += 60
    assert limiter.acquire("a") is not None


def test_clients_do_not_share_a_bucket() -> None:
    limiter = RateLimiter(1, 0, Clock())
    limiter.acquire("a")
    assert limiter.acquire("b") is not None


def test_concurrent_requests_are_limited_until_they_are_released() -> None:
    limiter = RateLimiter(0, 2, Clock())
    assert limiter.acquire("a") is None
    limiter.acquire("a")
    assert refusal(limiter, "a").error.status == 429
    limiter.release("a")
    limiter.acquire("a")


def test_idle_clients_are_dropped() -> None:
    """A flood of addresses must not fill the memory."""
    clock = Clock()
    limiter = RateLimiter(60, 0, clock)
    for number in range(MAX_IDLE_CLIENTS):
        limiter.acquire(str(number))
        limiter.release(str(number))
    clock.now_s += 61
    limiter.acquire("one more")
    assert len(limiter._buckets) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0061, "7ms"), (1.5, "1.5s"), (59, "59s"), (360, "6m0s"), (61, "1m1s")]
)
def test_durations_are_in_openais_notation(seconds: float, text: str) -> None:
    assert as_duration(seconds) == text


def scope_of(method: str = "POST", path: str = "/v1/chat/completions", **headers: str) -> Scope:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw, "client": ("10.0.0.1", 1234)}


async def receive() -> Message:
    return {"type": "http.request", "body": b""}


async def test_a_request_is_released_however_it_ends() -> None:
    """Else a stream whose client left would block its key until a restart."""
    limiter = RateLimiter(10, 1, Clock())
    sent: list[Message] = []
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await release.wait()

    async def send(message: Message) -> None:
        sent.append(message)

    middleware = RateLimitMiddleware(app, limiter)
    running = asyncio.create_task(middleware(scope_of(), receive, send))
    await asyncio.sleep(0)
    with pytest.raises(RequestRefused):
        await middleware(scope_of(), receive, send)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    release.set()
    await middleware(scope_of(), receive, send)
    assert (b"x-ratelimit-limit-requests", b"10") in sent[0]["headers"]


async def test_only_requests_to_the_model_are_limited() -> None:
    limiter = RateLimiter(1, 1, Clock())
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["path"])

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    middleware = RateLimitMiddleware(app, limiter)
    for scope in (scope_of("GET", "/v1/models"), scope_of("GET", "/health"), scope_of("POST", "/tokenize")) * 3:
        await middleware(scope, receive, send)
    assert len(passed) == 9


async def test_the_api_limits_by_key_and_sends_when_to_retry(serve: Serve, reply: Reply) -> None:
    """SDKs wait for as long as the headers say; without them they try again at once."""
    async with serve(reply("Hi"), rate_limit_rpm=2, api_key="one,two") as served:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}

        async def post(key: str) -> httpx.Response:
            return await served.http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})

        first, _, third, other = [await post(key) for key in ("one", "one", "one", "two")]
    assert first.status_code == other.status_code == 200
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert third.status_code == 429
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(third.headers["retry-after"]) <= 30
    assert third.headers["x-request-id"]


async def test_a_wrong_key_is_refused_before_it_is_counted(serve: Serve, reply: Reply) -> None:
    """An attacker's guesses must not fill the limiter's memory."""
    async with serve(reply("Hi"), rate_limit_rpm=1, api_key="one") as served:
        for number in range(5):
            wrong = await served.http.post("/v1/chat/completions", json={}, headers={"x-api-key": str(number)})
            assert wrong.status_code == 401
        right = await served.http.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]},
            headers={"x-api-key": "one"},
        )
    assert right.status_code == 200


async def test_without_keys_clients_are_told_apart_by_address(serve: Serve, reply: Reply) -> None:
    """Any key is accepted then: a client would evade limits by changing it."""
    async with serve(reply("Hi"), max_concurrent_per_key=9, rate_limit_rpm=2) as served:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        statuses = [
            (await served.http.post("/v1/chat/completions", json=body, headers={"x-api-key": key})).status_code
            for key in ("one", "two", "three")
        ]
    assert statuses == [200, 200, 429]
