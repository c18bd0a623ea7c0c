"""Keys, body sizes, request ids, and errors before any route."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from server.api.middleware import auth
from server.errors import CannotStart
from tests.api.conftest import MODEL, Serve
from tests.backends.scripted import Script

Reply = Callable[..., Script]
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


def code_of(reply: httpx.Response) -> str | None:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"]) if error["code"] is not None else None


async def test_without_keys_any_key_works(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hi")) as served:
        for headers in ({}, {"authorization": "Bearer any"}, {"x-api-key": "any"}):
            answer = await served.http.post("/v1/chat/completions", json=BODY, headers=headers)
            assert answer.status_code == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, None),
        ({"authorization": "Bearer "}, 401, None),
        ({"authorization": "Basic one"}, 401, None),
        ({"authorization": "Bearer on"}, 401, "invalid_api_key"),
        ({"authorization": "Bearer onee"}, 401, "invalid_api_key"),
        ({"x-api-key": "three"}, 401, "invalid_api_key"),
        ({"authorization": "Bearer one"}, 200, None),
        ({"authorization": "bearer two"}, 200, None),
        ({"x-api-key": "two"}, 200, None),
    ],
    ids=str,
)
async def test_a_request_needs_a_valid_key(
    serve: Serve, reply: Reply, headers: dict[str, str], status: int, code: str | None
) -> None:
    async with serve(reply("Hi"), api_key="one, two") as served:
        answer = await served.http.post("/v1/chat/completions", json=BODY, headers=headers)
    assert answer.status_code == status
    assert answer.headers["x-request-id"]
    if status == 401:
        assert code_of(answer) == code
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_paths_that_need_a_key(serve: Serve) -> None:
    async with serve(api_key="one") as served:
        for path in ("/", "/health", "/ready"):
            assert (await served.http.get(path)).status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/memory", "/docs", "/openapi.json", "/nowhere"):
            assert (await served.http.get(path)).status_code == 401, path
    async with serve(api_key="one", open_metrics=True) as served:
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert (await served.http.get(path)).status_code == 200
        assert (await served.http.get("/v1/models")).status_code == 401


async def test_a_key_file_is_reloaded_when_it_changes(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nfirst\n\nsecond\n")
    async with serve(api_key_file=str(path)) as served:

        async def status(key: str) -> int:
            return (await served.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code

        assert [await status(key) for key in ("first", "second", "third", "# ours")] == [200, 200, 401, 401]
        path.write_text("third\n")
        os.utime(path, ns=(1, 1))
        await _until(lambda: status("third"), 200)
        assert await status("first") == 401
        path.unlink()
        assert await status("third") == 200, "the last keys stay valid while the file is replaced"
        path.write_text("")
        await _until(lambda: status("third"), 401)


async def test_a_removed_key_file_revokes_its_keys(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were valid until the next start."""
    monkeypatch.setattr(auth, "RELOAD_INTERVAL_S", 0.0)
    monkeypatch.setattr(auth, "FILE_GRACE_S", 0.2)
    path = tmp_path / "keys"
    path.write_text("first\n")
    async with serve(api_key_file=str(path), api_key="listed") as served:

        async def status(key: str) -> int:
            return (await served.http.get("/v1/models", headers={"x-api-key": key})).status_code

        path.unlink()
        assert await status("first") == 200
        await _until(lambda: status("first"), 401)
        assert await status("listed") == 200
        path.write_text("second\n")
        assert [await status("first"), await status("second")] == [401, 200]


async def test_keys_of_a_file_may_be_utf8_behind_a_byte_order_mark(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes("first\r\n  # a comment\r\nключ\r\n".encode("utf-8-sig"))
    async with serve(api_key_file=str(path)) as served:
        for key, expected in ((b"first", 200), ("ключ".encode(), 200), (b"# a comment", 401)):
            answer = await served.http.get("/v1/models", headers={b"authorization": b"Bearer " + key})
            assert answer.status_code == expected


@pytest.mark.parametrize("listed", [" ", ",", " , ,"])
async def test_a_list_of_keys_without_a_key_is_an_error(serve: Serve, listed: str) -> None:
    """A compose file with unset variables started a server that was open to all."""
    with pytest.raises(CannotStart, match="no key at all"):
        async with serve(api_key=listed):
            raise AssertionError("served without keys")


async def test_a_client_is_its_key_however_it_is_sent(serve: Serve, reply: Reply) -> None:
    """An empty Bearer beside `x-api-key`, from changing addresses, had no limit."""
    ways = [
        {"authorization": "Bearer one"},
        {"x-api-key": "one"},
        {"authorization": "Bearer ", "x-api-key": "one", "x-forwarded-for": "203.0.113.1"},
        {"authorization": "bearer  one", "x-api-key": "two", "x-forwarded-for": "203.0.113.2"},
        {"authorization": "Basic x", "x-api-key": " one", "x-forwarded-for": "203.0.113.3"},
    ]
    async with serve(reply("Hi"), api_key="one,two", rate_limit_rpm=2) as served:
        statuses = [
            (await served.http.post("/v1/chat/completions", json=BODY, headers=headers)).status_code for headers in ways
        ]
        assert statuses == [200, 200, 429, 429, 429]
        answer = await served.http.post("/v1/chat/completions", json=BODY, headers={"x-api-key": "two"})
        assert answer.status_code == 200


async def _until(get: Callable[[], "object"], expected: int) -> None:
    for _ in range(60):
        if await get() == expected:  # type: ignore[misc]
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never {expected}")


async def test_a_key_file_that_is_missing_at_the_start_is_an_error(serve: Serve) -> None:
    with pytest.raises(CannotStart, match="key file"):
        async with serve(api_key_file="/nowhere/keys"):
            raise AssertionError("served without its keys")


async def test_a_body_beyond_the_limit_is_refused_with_or_without_a_length(serve: Serve) -> None:
    async def pieces():  # type: ignore[no-untyped-def]
        for _ in range(10):
            yield b"x" * 1000

    async with serve(max_body_bytes=2048) as served:
        for content in (b"x" * 4000, pieces()):
            answer = await served.http.post("/v1/chat/completions", content=content)
            assert answer.status_code == 413
            assert code_of(answer) == "request_too_large"
            assert answer.headers["x-request-id"]


async def test_unknown_urls_and_methods_get_the_error_envelope(serve: Serve) -> None:
    async with serve() as served:
        assert (answer := await served.http.get("/v1/nowhere")).status_code == 404
        assert code_of(answer) == "unknown_url"
        assert (answer := await served.http.get("/v1/chat/completions")).status_code == 405
        assert code_of(answer) == "method_not_allowed" and "POST" in answer.headers["allow"]
        assert (answer := await served.http.post("/v1/chat/completions/", json=BODY)).status_code == 404


async def test_the_clients_own_request_id_is_kept_if_it_is_well_formed(serve: Serve) -> None:
    async with serve() as served:
        answer = await served.http.get("/health", headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        answer = await served.http.get("/health", headers={"x-request-id": "a b" * 100})
        assert answer.headers["x-request-id"].startswith("req_")


async def test_browsers_are_admitted_from_allowed_origins_only(serve: Serve) -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    async with serve() as served:
        answer = await served.http.options("/v1/chat/completions", headers=preflight)
        assert "access-control-allow-origin" not in answer.headers
    async with serve(cors_origins="https://a.example, https://b.example", api_key="one") as served:
        answer = await served.http.options("/v1/chat/completions", headers=preflight)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        answer = await served.http.get("/v1/models", headers={"origin": "https://a.example"})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == "https://a.example", "or a browser hides the error"
