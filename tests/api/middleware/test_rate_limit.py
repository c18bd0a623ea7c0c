"""Requests a minute and at once, by client; time is given by the test."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api.errors import RequestRefused
from server.api.middleware.rate_limit import MAX_IDLE_CLIENTS, RateLimiter, RateLimitMiddleware, as_duration, client_of
from tests.api.conftest import MODEL, Serve
from tests.backends.scripted import Script

Reply = Callable[..., Script]


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def refusal(ledger: RateLimiter, client: str) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        ledger.take(client)
    return caught.value


def test_the_bucket_empties_and_refills_evenly() -> None:
    clock = Clock()
    ledger = RateLimiter(60, 0, clock)
    standings = [ledger.take("a") for _ in range(60)]
    assert [standing.remaining for standing in standings if standing] == list(range(59, -1, -1))
    refused = refusal(ledger, "a").fault
    assert (refused.status, refused.type, refused.code) == (429, "requests", "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now_s += 1
    assert ledger.take("a") is not None
    refusal(ledger, "a")


def test_a_refused_request_costs_nothing() -> None:
    """Counting refusals would lock out a client that retries too early for good."""
    clock = Clock()
    ledger = RateLimiter(1, 0, clock)
    ledger.take("a")
    for _ in range(100):
        refusal(ledger, "a")
    clock.now_s += 60
    assert ledger.take("a") is not None


def test_clients_do_not_share_a_bucket() -> None:
    ledger = RateLimiter(1, 0, Clock())
    ledger.take("a")
    assert ledger.take("b") is not None


def test_running_requests_are_counted_and_given_back() -> None:
    ledger = RateLimiter(0, 2, Clock())
    assert ledger.take("a") is None
    ledger.take("a")
    assert refusal(ledger, "a").fault.status == 429
    ledger.give_back("a")
    ledger.take("a")


def test_idle_clients_are_forgotten() -> None:
    """A flood of addresses must not fill the memory."""
    clock = Clock()
    ledger = RateLimiter(60, 0, clock)
    for number in range(MAX_IDLE_CLIENTS):
        ledger.take(str(number))
        ledger.give_back(str(number))
    clock.now_s += 61
    ledger.take("one more")
    assert len(ledger._accounts) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0061, "7ms"), (1.5, "1.5s"), (59, "59s"), (360, "6m0s"), (61, "1m1s")]
)
def test_durations_read_as_openai_writes_them(seconds: float, text: str) -> None:
    assert as_duration(seconds) == text


def scope_of(method: str = "POST", path: str = "/v1/chat/completions", **headers: str) -> Scope:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw, "client": ("10.0.0.1", 1234)}


def test_a_client_is_its_key_however_it_is_sent_or_its_address() -> None:
    bearer = client_of(scope_of(authorization="Bearer secret"), by_key=True)
    assert bearer == client_of(scope_of(x_api_key="secret"), by_key=True)
    assert "secret" not in bearer
    assert client_of(scope_of(), by_key=True) == "address 10.0.0.1"


async def no_mail() -> Message:
    return {"type": "http.request", "body": b""}


async def test_a_request_is_given_back_whatever_ends_it() -> None:
    """A stream whose client left would otherwise block its key until the server is started again."""
    ledger = RateLimiter(10, 1, Clock())
    sent: list[Message] = []
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await release.wait()

    async def send(message: Message) -> None:
        sent.append(message)

    room = RateLimitMiddleware(app, ledger, by_key=True)
    running = asyncio.create_task(room(scope_of(), no_mail, send))
    await asyncio.sleep(0)
    with pytest.raises(RequestRefused):
        await room(scope_of(), no_mail, send)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    release.set()
    await room(scope_of(), no_mail, send)
    assert (b"x-ratelimit-limit-requests", b"10") in sent[0]["headers"]


async def test_looking_is_free() -> None:
    ledger = RateLimiter(1, 1, Clock())
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["path"])

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    room = RateLimitMiddleware(app, ledger, by_key=True)
    for scope in (scope_of("GET", "/v1/models"), scope_of("GET", "/health"), scope_of("POST", "/tokenize")) * 3:
        await room(scope, no_mail, send)
    assert len(passed) == 9


async def test_the_api_counts_by_key_and_the_sdk_is_told_when_to_come_back(serve: Serve, reply: Reply) -> None:
    """The whole way: key, ledger, headers of a good reply, a 429 in OpenAI's shape."""
    async with serve(reply("Hi"), rate_limit_rpm=2, api_key="one,two") as served:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}

        async def ask(key: str) -> httpx.Response:
            return await served.http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})

        first, _, third, other = [await ask(key) for key in ("one", "one", "one", "two")]
    assert first.status_code == other.status_code == 200
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert third.status_code == 429
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(third.headers["retry-after"]) <= 30
    assert third.headers["x-request-id"]


async def test_a_wrong_key_is_refused_before_it_is_counted(serve: Serve, reply: Reply) -> None:
    """An attacker's guesses must not fill the ledger."""
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


async def test_without_keys_a_made_up_key_is_no_new_client(serve: Serve, reply: Reply) -> None:
    """Any key is let in then: limits that go by it would hold for nobody who changes it."""
    async with serve(reply("Hi"), max_concurrent_per_key=9, rate_limit_rpm=2) as served:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        statuses = [
            (await served.http.post("/v1/chat/completions", json=body, headers={"x-api-key": key})).status_code
            for key in ("one", "two", "three")
        ]
    assert statuses == [200, 200, 429]
