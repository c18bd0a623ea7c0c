"""C91, C99, C100: models, health, start-up; and the OpenAPI document under fuzzing."""

import time
from typing import Any

import httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok

from tests.contract.requests import CHAT, HELLO, KEY, LOCKED, MODEL, SLASHED, fault
from tests.live import Live, listening_server

CASES, LONG_CASES = 6, 60  # a path


def test_c91_models(live: Live) -> None:
    listed = httpx.get(f"{live.url}/v1/models").json()
    assert listed["object"] == "list"
    for model in listed["data"]:
        assert {"id", "object", "created", "owned_by", "max_model_len"} <= set(model)
        assert model["object"] == "model" and isinstance(model["created"], int)
    assert live.client().models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as missing:
        live.client().models.retrieve("none/such")
    assert missing.value.code == "model_not_found"


def test_c91_an_id_with_a_slash(guarded: Live) -> None:
    client = guarded.client(api_key=KEY)
    assert client.models.retrieve(SLASHED).id == SLASHED
    assert httpx.get(f"{guarded.url}/v1/models/org%2Fname", headers=LOCKED).json()["id"] == SLASHED


@pytest.mark.parametrize("path", ["/", "/health"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_c99_alive(live: Live, path: str, method: str) -> None:
    response = httpx.request(method, live.url + path)
    assert response.status_code == 200 and response.headers["x-request-id"]
    assert bool(response.content) == (method == "GET")


def test_c100_before_the_model_is_loaded_nothing_hangs() -> None:
    body = {"model": MODEL, "messages": [HELLO], "max_tokens": 1}
    statuses: list[int] = []
    with listening_server() as server:
        deadline_s = time.monotonic() + 90
        while 200 not in statuses:
            assert time.monotonic() < deadline_s
            response = httpx.post(f"{server.url}{CHAT}", json=body, timeout=60)
            statuses.append(response.status_code)
            if response.status_code != 200:
                error = fault(response, 503)
                assert error["code"] == "model_loading"
                assert 0 < int(response.headers["retry-after"]) <= 120
                assert httpx.get(f"{server.url}/health").status_code == 200
                assert httpx.get(f"{server.url}/ready").status_code in (200, 503)
                time.sleep(0.1)
    assert set(statuses) == {200, 503}


def exchange(response: Any) -> str:
    """A request as it was sent and its response: all that is needed to send it again."""
    request = response.request
    body = request.body.encode() if isinstance(request.body, str) else request.body
    return (
        f"{request.method} {request.url}\nheaders: {dict(request.headers)!r}\nbody: {body!r}\n"
        f"-> {response.status_code}\nheaders: {dict(response.headers)!r}\nbody: {response.text!r}"
    )


def test_the_openapi_document_holds_under_fuzzing(live: Live, pytestconfig: pytest.Config) -> None:
    """Generated requests, right and wrong: never a 5xx, and every fault in the envelope.

    The cases are the same in each run, unless --hypothesis-seed is given.
    """
    num_cases = LONG_CASES if pytestconfig.getoption("long") else CASES
    has_seed = pytestconfig.getoption("--hypothesis-seed") is not None
    document = httpx.get(f"{live.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    statuses: set[int] = set()

    def check(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body = {**case.body, "max_tokens": 2, "n": 1} if "model" in case.body else case.body
        response = case.call(base_url=live.url, timeout=60)
        statuses.add(response.status_code)
        deadline_passed = response.status_code == 504 and "x-request-timeout" in case.headers
        assert response.status_code < 500 or case.path == "/ready" or deadline_passed, exchange(response)
        assert response.headers["x-request-id"], exchange(response)
        if response.status_code >= 400:
            if case.path.startswith("/v1/messages"):
                assert set(response.json()) == {"type", "error", "request_id"}, exchange(response)
                assert set(response.json()["error"]) == {"type", "message"}, exchange(response)
            else:
                assert set(response.json()) == {"error"}, exchange(response)
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}, exchange(response)

    for operation in schema.get_all_operations():
        assert isinstance(operation, Ok)
        fuzz = given(case=operation.ok().as_strategy())(check)
        settings(
            max_examples=num_cases if operation.ok().method == "post" else 5,
            deadline=None,
            derandomize=not has_seed,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )(fuzz)()
    assert 200 in statuses and 400 in statuses
