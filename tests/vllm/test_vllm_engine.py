"""Requests that a real vLLM computes, beside the contract: the same replies, and clear refusals.

`live` is `toolwire serve --engine` in front of `vllm serve`; `python -m tests.vllm` starts both.
"""

import json
import subprocess
import sys
from typing import Any

import httpx
import pytest

from tests.contract.requests import (
    CHAT,
    HELLO,
    MODEL,
    NAMED,
    SEARCH,
    TWO_CITIES,
    USER,
    WEATHER,
    calls_of,
    fault,
    ok,
    post,
    stream,
    text_of,
)
from tests.live import ROOT, Live, live_server

GREEDY: dict[str, dict[str, Any]] = {
    "text": {"messages": [HELLO], "max_tokens": 40},
    "auto": {"messages": [USER], "tools": [WEATHER, SEARCH], "max_tokens": 300},
    "parallel": {"messages": [TWO_CITIES], "tools": [WEATHER], "max_tokens": 400},
    "required": {"messages": [TWO_CITIES], "tools": [WEATHER, SEARCH], "tool_choice": "required", "max_tokens": 400},
    "named": {"messages": [USER], "tools": [WEATHER, SEARCH], "tool_choice": NAMED, "max_tokens": 200},
    "thinking": {
        "messages": [USER], "tools": [WEATHER], "tool_choice": "required", "max_tokens": 400,
        "chat_template_kwargs": {"enable_thinking": True},
    },
    "answer": {
        "messages": [HELLO], "max_tokens": 100,
        "response_format": {"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": {
            "type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"],
            "additionalProperties": False}}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def own_replies() -> dict[str, dict[str, Any]]:
    """What an engine of our own writes to the same requests, in the same arithmetic."""
    with live_server("--dtype", "float32") as own:
        return {name: ok(own, temperature=0, **fields)["choices"][0] for name, fields in GREEDY.items()}


def functions_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and arguments of each call."""
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]


def test_the_engine_is_shown_as_vllm(live: Live) -> None:
    (engine,) = httpx.get(f"{live.url}/v1/engines").json()["data"]
    assert (engine["kind"], engine["state"]) == ("vllm", "up")
    shown = subprocess.run(
        [sys.executable, "-m", "server", "engines", "list", "--url", live.url], capture_output=True, text=True, cwd=ROOT
    )
    assert shown.returncode == 0 and "vllm" in shown.stdout


@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_reply_is_that_of_our_own_engine(live: Live, own_replies: dict[str, Any], name: str) -> None:
    """Ids of the prompt, grammar or stop ids that arrive otherwise would make another reply of the same weights."""
    found, own = ok(live, temperature=0, **GREEDY[name])["choices"][0], own_replies[name]
    assert functions_of(found["message"]) == functions_of(own["message"])
    assert found["message"]["content"] == own["message"]["content"]
    assert found["finish_reason"] == own["finish_reason"]


@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_stream_is_the_whole_reply(live: Live, name: str) -> None:
    whole = ok(live, temperature=0, **GREEDY[name])["choices"][0]["message"]
    chunks = stream(live, temperature=0, **GREEDY[name])
    assert (text_of(chunks), calls_of(chunks)) == (whole["content"] or "", functions_of(whole))


def test_sampling_parameters_arrive(live: Live) -> None:
    """One that was left out would change nothing, and nobody would see it."""
    first, again = (
        ok(live, messages=[HELLO], temperature=1.5, seed=3, max_tokens=24)["choices"][0]["message"]["content"]
        for _ in range(2)
    )
    assert first == again
    token = live_token(live, " the")
    reply = ok(
        live, messages=[HELLO], logit_bias={str(token): 100}, max_tokens=6, temperature=0, ignore_eos=True
    )  # fmt: skip
    assert reply["choices"][0]["message"]["content"].strip().split() == ["the"] * 6
    short = ok(live, messages=[HELLO], min_tokens=20, max_tokens=24, temperature=0)
    assert short["usage"]["completion_tokens"] >= 20


def live_token(server: Live, text: str) -> int:
    """The id of a text that is one token."""
    reply = httpx.post(f"{server.url}/tokenize", json={"prompt": text})
    (token,) = reply.json()["tokens"]
    return int(token)


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("/v1/completions", {"prompt": "A city", "echo": True, "logprobs": 1, "max_tokens": 2}, "logprobs of a prompt"),
        (CHAT, {"messages": [HELLO], "max_tokens": 200, "thinking_budget": 20,
                "chat_template_kwargs": {"enable_thinking": True}}, "budget of thinking tokens"),
    ],
)  # fmt: skip
def test_what_vllm_cannot_be_told_is_refused(live: Live, path: str, fields: dict[str, Any], words: str) -> None:
    error = fault(post(live, {"model": MODEL, **fields}, path=path))
    assert words in error["message"] and "vLLM" in error["message"]


def test_a_prompt_that_does_not_fit_is_the_client_s_error(live: Live) -> None:
    error = fault(post(live, messages=[{"role": "user", "content": "x " * 20_000}]))
    assert error["code"] == "context_length_exceeded"


def test_a_server_with_another_key_does_not_start(live: Live) -> None:
    (engine,) = httpx.get(f"{live.url}/v1/engines").json()["data"]
    ended = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", "0", "--engine", engine["url"], "--engine-key", "another"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 2 and "--engine-key" in ended.stderr


def test_its_load_is_reported(live: Live) -> None:
    """Routers in front read these names; a server with engines elsewhere sums theirs."""
    metrics = httpx.get(f"{live.url}/metrics").text
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert f"\n{name} " in metrics
    assert json.loads(httpx.get(f"{live.url}/ready").text)["running"] == 0
