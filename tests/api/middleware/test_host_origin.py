"""Requests that a web page of another site can send: other content types, other origins, rebound names."""

import json

import pytest

from tests.api.conftest import MODEL, Serve

CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]})
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000", "192.168.1.7", "[::1]:8000", "localhost:8000", "LOCALHOST", "localhost.", "toolwire:8000",
        "model.svc.internal", "box.local:80", "a.localhost", "llm.example.com", "LLM.example.com:443",
    ],
)  # fmt: skip
async def test_hosts_that_no_foreign_dns_can_point_here(serve: Serve, host: str) -> None:
    async with serve(allowed_hosts="llm.example.com, other.example.com") as served:
        assert (await served.http.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["attacker.example", "attacker.example:8000", "127.0.0.1.attacker.example", "x@localhost", "[::1", "a b", ""],
)
async def test_a_rebound_name_is_refused_where_no_key_is_required(serve: Serve, host: str) -> None:
    """A page whose own name points here read prompts, memory and metrics."""
    for path in ("/v1/models", "/metrics", "/docs", "/v1/memory"):
        async with serve() as served:
            answer = await served.http.get(path, headers={"host": host})
            assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_not_allowed"
            assert "--allowed-hosts" in answer.json()["error"]["message"]


async def test_any_host_is_served_with_keys_or_when_all_are_allowed(serve: Serve) -> None:
    headers = {"host": "llm.example.com", "authorization": "Bearer one"}
    for options in ({"api_key": "one"}, {"allowed_hosts": "*"}):
        async with serve(**options) as served:
            assert (await served.http.get("/v1/models", headers=headers)).status_code == 200


FOREIGN = {"origin": "https://attacker.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}


@pytest.mark.parametrize(
    "headers",
    [
        {**FOREIGN, "content-type": "text/plain;charset=UTF-8"},
        {**FOREIGN, "content-type": "application/x-www-form-urlencoded"},
        {**FOREIGN, "content-type": "multipart/form-data; boundary=x"},
        {**FOREIGN, **JSON},
        {"origin": "null", **JSON},
        {"origin": "http://localhost:3000", "sec-fetch-site": "same-site", **JSON},
        {"origin": "http://attacker.example", **JSON},
        {"sec-fetch-site": "cross-site", **JSON},
    ],
    ids=str,
)
async def test_pages_of_other_origins_start_nothing(serve: Serve, headers: dict[str, str]) -> None:
    """`fetch(url, {method: "POST", mode: "no-cors", body})` ran a request of any page that the user had open."""
    for api_key in ("", "one"):
        async with serve(api_key=api_key) as served:
            answer = await served.http.post("/v1/chat/completions", content=CHAT, headers=headers)
            assert answer.status_code == 403 and answer.json()["error"]["code"] == "origin_not_allowed"
            assert not served.backend.asked


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_page_must_declare_json(serve: Serve, kind: str) -> None:
    """These three types need no permission of the server; only JSON does."""
    async with serve(cors_origins="https://a.example") as served:
        for page in ({"origin": "https://a.example"}, {"sec-fetch-site": "same-origin"}):
            headers = {**page, **({"content-type": kind} if kind else {})}
            answer = await served.http.post("/v1/chat/completions", content=CHAT, headers=headers)
            assert answer.status_code == 415 and answer.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {},
        {"origin": "http://test", **JSON},
        {"origin": "https://proxy.example", "sec-fetch-site": "same-origin", **JSON},
        {
            "origin": "https://a.example",
            "sec-fetch-site": "cross-site",
            "content-type": "application/json; charset=utf-8",
        },
    ],
    ids=str,
)
async def test_programs_and_admitted_pages_are_served(serve: Serve, headers: dict[str, str]) -> None:
    """The first is what a plain `curl -d` sends."""
    async with serve(cors_origins="https://a.example") as served:
        answer = await served.http.post("/tokenize", content='{"prompt": "Hi"}', headers=headers)
        assert answer.status_code == 200


async def test_a_link_to_the_documentation_works_and_a_frame_does_not(serve: Serve) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    async with serve() as served:
        page = await served.http.get("/docs", headers=link)
        assert page.status_code == 200 and "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff" and "<script" not in page.text
        assert (await served.http.get("/docs", headers={**link, "sec-fetch-dest": "iframe"})).status_code == 403
        assert (await served.http.get("/v1/memory", headers={**FOREIGN})).status_code == 403


async def test_preflights_of_other_origins_grant_nothing(serve: Serve) -> None:
    preflight = {**FOREIGN, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for options in ({}, {"cors_origins": "https://a.example"}, {"api_key": "one"}):
        async with serve(**options) as served:
            answer = await served.http.options("/v1/chat/completions", headers=preflight)
            assert answer.status_code in (400, 405) and "access-control-allow-origin" not in answer.headers
