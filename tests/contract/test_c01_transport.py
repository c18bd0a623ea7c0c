"""C01-C25: transport, errors and the range of every field."""

import time
from typing import Any

import httpx
import pytest

from tests.contract.requests import CHAT, HELLO, KEY, LOCKED, MODEL, SLASHED, USER, fault, ok, post, refused
from tests.live import Live


@pytest.mark.parametrize("raw", [b"", b"not json", b'{"model":', b'{"a":\xff}', b'{"model": NaN}', b"[" * 10_000])
def test_c01_a_body_that_is_no_json(live: Live, raw: bytes) -> None:
    response = httpx.post(live.url + CHAT, content=raw, headers={"content-type": "application/json"})
    error = fault(response)
    assert error["type"] == "invalid_request_error" and error["param"] is None and error["code"] is None
    assert error["message"].startswith("We could not parse the JSON body of your request.")


@pytest.mark.parametrize("body", [[], "x", 7, None])
def test_c02_a_body_that_is_no_object(live: Live, body: object) -> None:
    fault(httpx.post(live.url + CHAT, json=body))


def test_c03_an_unknown_path(live: Live) -> None:
    fault(httpx.get(f"{live.url}/v1/nowhere"), 404)


def test_c04_a_wrong_method(live: Live) -> None:
    fault(httpx.get(live.url + CHAT), 405)


def test_c05_no_model(live: Live) -> None:
    for body in ({"messages": [USER]}, {"messages": [USER], "model": ""}, {"messages": [USER], "model": None}):
        error = fault(post(live, body))
        assert (error["message"], error["param"]) == ("you must provide a model parameter", None)


def test_c06_an_unknown_model(live: Live) -> None:
    error = fault(post(live, {"model": "gpt-4o", "messages": [USER]}), 404)
    assert error["code"] == "model_not_found" and "gpt-4o" in error["message"]


def test_c07_no_messages(live: Live) -> None:
    error = fault(post(live, {"model": MODEL}))
    assert (error["code"], error["param"]) == ("missing_required_parameter", "messages")


def test_c08_empty_messages(live: Live) -> None:
    assert "empty array" in refused(live, "messages", "empty_array", messages=[])


def test_c09_messages_as_a_string(live: Live) -> None:
    refused(live, "messages", "invalid_type", messages="hi")


def test_c10_keys(live: Live, guarded: Live) -> None:
    assert fault(post(guarded), 401)["code"] is None
    assert fault(post(guarded, headers={"authorization": "Bearer wrong"}), 401)["code"] == "invalid_api_key"
    for headers in (LOCKED, {"x-api-key": KEY}):
        assert post(guarded, model=SLASHED, max_tokens=1, headers=headers).status_code == 200
    for headers in ({}, {"authorization": "Bearer whatever"}):
        assert post(live, max_tokens=1, headers=headers).status_code == 200


def test_c11_temperature_too_high(live: Live) -> None:
    message = refused(live, "temperature", "decimal_above_max_value", temperature=3)
    assert message == "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead."


def test_c12_temperature_in_words(live: Live) -> None:
    refused(live, "temperature", "invalid_type", temperature="hot")


def test_c13_top_p_too_low(live: Live) -> None:
    refused(live, "top_p", "decimal_below_min_value", top_p=-1)


def test_c14_no_choice_at_all(live: Live) -> None:
    refused(live, "n", "integer_below_min_value", n=0)


def test_c15_no_token_at_all(live: Live) -> None:
    refused(live, "max_completion_tokens", "integer_below_min_value", max_completion_tokens=0)


def test_c16_five_stop_strings(live: Live, guarded: Live) -> None:
    """Refused by OpenAI and under --strict; clients of other servers send more."""
    error = fault(post(guarded, model=SLASHED, stop=list("abcde"), headers=LOCKED))
    assert (error["param"], error["code"]) == ("stop", "array_above_max_length")
    assert ok(live, stop=list("abcde"), max_tokens=1)


def test_c17_alternatives_without_logprobs(live: Live) -> None:
    message = refused(live, "top_logprobs", None, top_logprobs=2)
    assert message == "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."


def test_c18_too_many_alternatives(live: Live) -> None:
    refused(live, "top_logprobs", "integer_above_max_value", logprobs=True, top_logprobs=21)


def test_c19_stream_options_without_a_stream(live: Live) -> None:
    message = refused(live, "stream_options", None, stream_options={"include_usage": True})
    assert message == "The 'stream_options' parameter is only allowed when 'stream' is enabled."


def test_c20_both_limits(live: Live) -> None:
    """Two limits that say the same are one."""
    refused(live, "max_tokens", "invalid_parameter_combination", max_tokens=1, max_completion_tokens=2)
    assert ok(live, max_tokens=1, max_completion_tokens=1)["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_c21_a_prompt_beyond_the_window(live: Live, stream: bool) -> None:
    response = post(live, messages=[{"role": "user", "content": "word " * 20_000}], stream=stream)
    error = fault(response)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    limit = httpx.get(f"{live.url}/v1/models").json()["data"][0]["max_model_len"]
    assert str(limit) in error["message"]
    assert response.headers["content-type"] == "application/json"


def test_c22_unknown_keys(live: Live, guarded: Live) -> None:
    assert post(live, bogus_key=1, max_tokens=1).status_code == 200
    error = fault(post(guarded, model=SLASHED, bogus_key=1, headers=LOCKED))
    assert (error["code"], error["param"]) == ("unknown_parameter", "bogus_key")
    assert error["message"] == "Unknown parameter: 'bogus_key'."


OPTIONAL = [
    "max_completion_tokens",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "n",
    "stop",
    "seed",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "response_format",
    "reasoning_effort",
    "verbosity",
    "service_tier",
    "metadata",
    "store",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "moderation",
    "prediction",
    "modalities",
    "audio",
    "web_search_options",
    "top_k",
    "min_p",
    "repetition_penalty",
]


def test_c23_null_is_left_out(live: Live) -> None:
    ok(live, messages=[HELLO], max_tokens=4, **dict.fromkeys(OPTIONAL))


def test_c24_response_format_without_a_type(live: Live) -> None:
    refused(live, "response_format.type", "missing_required_parameter", response_format={})
    refused(live, "response_format.type", "invalid_value", response_format={"type": "bogus"})


@pytest.mark.timeout(300)
def test_c25_no_fault_asks_to_be_repeated(small: Live) -> None:
    """`fault` checks it for every 4xx of this suite. Overload is a 429 or 503 with a short Retry-After."""
    fields: dict[str, Any] = {"messages": [HELLO], "max_tokens": 6000, "ignore_eos": True}
    with httpx.stream("POST", small.url + CHAT, json={"model": MODEL, "stream": True, **fields}, timeout=60) as running:
        assert running.status_code == 200
        for streamed in (False, True):
            overloaded = post(small, **fields, stream=streamed)
            error = fault(overloaded, 429)
            assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
            assert 0 < int(overloaded.headers["retry-after"]) <= 120
    deadline_s = time.monotonic() + 30
    while post(small, messages=[HELLO], max_tokens=1).status_code != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
