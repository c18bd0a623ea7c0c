"""Anthropic's error envelope on its surface, with its types and statuses, also from middleware."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from anthropic.types.model_info import ModelInfo
from pydantic import TypeAdapter

from server.errors import NoMemory, QueueFull, ServeError, Starting
from tests.api.conftest import MODEL, Serve
from tests.api.messages.sdk import validated
from tests.api.messages.test_reply import send
from tests.backends.scripted import Script

VERSION = {"anthropic-version": "2023-06-01"}


def check(response: httpx.Response, status: int, kind: str, words: str = "") -> None:
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (status, "error", kind), body
    assert set(body) == {"type", "error", "request_id"} and set(body["error"]) == {"type", "message"}
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert words in body["error"]["message"]


async def test_faults_of_the_middleware(serve: Serve) -> None:
    body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    async with serve(api_key="secret", max_body_bytes=5000) as served:
        check(await served.http.post("/v1/messages", json=body), 401, "authentication_error")
        check(await served.http.get("/v1/models", headers=VERSION), 401, "authentication_error")
        key = {"x-api-key": "secret"}
        check(await served.http.post("/v1/messages", content=b"x" * 6000, headers=key), 413, "request_too_large")
        check(await served.http.get("/v1/messages/batches", headers=key), 404, "not_found_error")
        check(await served.http.get("/v1/messages", headers=key), 405, "invalid_request_error")
        check(await served.http.post("/v1/messages", content=b"{", headers=key), 400, "invalid_request_error")
        unknown = await served.http.post("/v1/messages", json={**body, "model": "claude-x"}, headers=key)
        check(unknown, 404, "not_found_error", "claude-x")
        check(await served.http.get("/v1/models/x", headers=key | VERSION), 404, "not_found_error")


async def test_a_client_beyond_its_own_limit_is_429(serve: Serve, reply: Callable[..., Script]) -> None:
    async with serve(reply("Hello"), rate_limit_rpm=1) as served:
        assert (await send(served)).status_code == 200
        response = await send(served)
    check(response, 429, "rate_limit_error")
    assert response.headers["retry-after"]


@pytest.mark.parametrize("error", [QueueFull("many wait"), NoMemory("short"), Starting("loading", 0.5)])
async def test_overload_is_529(serve: Serve, error: ServeError) -> None:
    """The SDK tries again, after the time that the header names."""
    async with serve([error]) as served:
        response = await send(served)
        check(await send(served, stream=True), 529, "overloaded_error")
    check(response, 529, "overloaded_error")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_prompt_too_long_in_the_words_that_make_clients_compact(serve: Serve) -> None:
    async with serve() as served:
        words = "many words " * 40000
        for messages in ([{"role": "user", "content": words}], [{"role": "user", "content": "a b " * 40000}]):
            check(await send(served, messages=messages), 400, "invalid_request_error", "prompt is too long: ")
            text = (await send(served, messages=messages)).json()["error"]["message"]
            tokens, limit = text.removeprefix("prompt is too long: ").removesuffix(" maximum").split(" tokens > ")
            assert int(tokens) > int(limit)


@pytest.mark.parametrize("field", ["model", "max_tokens", "messages"])
async def test_a_missing_field_is_named(serve: Serve, field: str) -> None:
    async with serve() as served:
        check(await send(served, **{field: None}), 400, "invalid_request_error", field)


async def test_tokens_are_counted_as_they_are_used(serve: Serve, reply: Callable[..., Script]) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "system": "Be brief."}
    async with serve(reply("Hello")) as served:
        usage = (await send(served, **fields)).json()["usage"]
        counted = await served.http.post("/v1/messages/count_tokens", json=fields)
    assert counted.json() == {"input_tokens": usage["input_tokens"]}


async def test_models_are_listed_in_the_shape_that_the_client_reads(serve: Serve) -> None:
    async with serve() as served:
        page = (await served.http.get("/v1/models", headers=VERSION)).json()
        one = (await served.http.get(f"/v1/models/{MODEL}", headers=VERSION)).json()
        plain = (await served.http.get("/v1/models")).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, MODEL, MODEL)
    assert set(page) == {"data", "has_more", "first_id", "last_id"}
    for card in (*page["data"], one):
        assert validated(TypeAdapter(ModelInfo), card).id == MODEL
    assert plain["object"] == "list"
