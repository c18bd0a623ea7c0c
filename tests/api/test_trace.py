"""`toolwire.trace`: what happened to a request, on every surface that has it."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest

from server.api.responses.state import ResponsesState
from server.messages import Delta, StepTrace, TokenLogprob
from tests.api.conftest import CALL, MODEL, WEATHER, Serve, events_of
from tests.live import Live

TRACE = {"toolwire": {"trace": True}}
HELLO = {"role": "user", "content": "Hi <|im_end|>"}
IdsOf = Callable[[str], list[int]]


def script(ids_of: IdsOf, stop_id: int) -> list[Delta]:
    """A reply of two steps: three ids of which two were drafted, then one that was forced and the end."""
    first, second = ids_of("One two three")[:3], ids_of(".")
    return [
        Delta("", cached=8, trace=StepTrace()),
        Delta("", first, trace=StepTrace(4, 2)),
        Delta("", [*second, stop_id], finish="stop", trace=StepTrace(forced=(0,))),
    ]


async def test_the_prompt_of_a_trace_is_what_the_model_read(serve: Serve, ids_of: IdsOf) -> None:
    """Text that looks like a control token is distinguished from one."""
    async with serve() as served:
        stop_id = served.checkpoint.stop_ids[0]
    async with serve(script(ids_of, stop_id)) as served:
        reply = (await served.chat(messages=[HELLO], **TRACE)).json()
        (generate,) = served.backend.asked
        trace = reply["toolwire"]["trace"]
        assert [token["id"] for token in trace["prompt"]] == generate.token_ids
        assert "".join(token["text"] for token in trace["prompt"]) == served.text_of(generate.token_ids)
        control = [token["text"] for token in trace["prompt"] if token.get("control")]
        assert control.count("<|im_end|>") == 1 and "".join(control).count("im_end") == 1
        assert trace["cached_tokens"] == reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 8


async def test_each_token_says_how_it_came_about(serve: Serve, ids_of: IdsOf) -> None:
    async with serve() as served:
        stop_id = served.checkpoint.stop_ids[0]
    async with serve(script(ids_of, stop_id)) as served:
        reply = (await served.chat(**TRACE)).json()
        trace = reply["toolwire"]["trace"]
    kinds = [(one["text"], one.get("forced", False), one.get("accepted", False)) for one in trace["tokens"]]
    assert kinds == [
        ("One", False, True), (" two", False, True), (" three", False, False), (".", True, False),
        ("<|im_end|>", False, False),
    ]  # fmt: skip
    assert [(one["tokens"], one.get("drafted", 0), one.get("accepted", 0)) for one in trace["steps"]] == [
        (3, 4, 2), (2, 0, 0),
    ]  # fmt: skip
    assert len(trace["tokens"]) == reply["usage"]["completion_tokens"]
    assert trace["tokens"][-1]["control"] and trace["grammar"] is None


async def test_probabilities_are_those_of_logprobs(serve: Serve, ids_of: IdsOf) -> None:
    (yes,), (no,) = ids_of("Yes"), ids_of("No")
    score = TokenLogprob(yes, -0.5, ((yes, -0.5), (no, -1.0)))
    async with serve([Delta("", cached=0), Delta("", [yes], [score], finish="length")]) as served:
        reply = (await served.chat(logprobs=True, top_logprobs=2, **TRACE)).json()
    (token,) = reply["toolwire"]["trace"]["tokens"]
    assert (token["logprob"], [one["text"] for one in token["top"]]) == (-0.5, ["Yes", "No"])


async def test_half_a_character_is_shown_by_its_bytes(serve: Serve, ids_of: IdsOf) -> None:
    """A token of a trace that is no whole character was shown as the same sign as every other such token."""
    ids = ids_of("𝄞")
    assert len(ids) > 1
    async with serve([Delta("", cached=0), Delta("", ids, finish="length")]) as served:
        trace = (await served.chat(**TRACE)).json()["toolwire"]["trace"]
    assert "".join(one["text"] for one in trace["tokens"]) == r"\xf0\x9d\x84\x9e"


async def test_a_stream_ends_with_the_trace_of_the_whole_reply(serve: Serve, ids_of: IdsOf) -> None:
    async with serve() as served:
        stop_id = served.checkpoint.stop_ids[0]
    async with serve(script(ids_of, stop_id)) as served:
        whole = (await served.chat(**TRACE)).json()["toolwire"]["trace"]
        chunks = [json.loads(one) for one in events_of((await served.chat(stream=True, **TRACE)).text)]
        with_usage = {"stream": True, "stream_options": {"include_usage": True}, **TRACE}
        usage_chunks = [json.loads(one) for one in events_of((await served.chat(**with_usage)).text)]
    assert [bool(chunk.get("toolwire")) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["choices"] == [] and "usage" not in chunks[-1]
    assert usage_chunks[-1]["usage"]["completion_tokens"] == 5
    for trace in (chunks[-1]["toolwire"]["trace"], usage_chunks[-1]["toolwire"]["trace"]):
        assert (trace["prompt"], trace["tokens"]) == (whole["prompt"], whole["tokens"])


async def test_requests_without_the_option_are_not_traced(serve: Serve, ids_of: IdsOf) -> None:
    async with serve([Delta("", cached=0), Delta("", ids_of("Hi"), finish="length")]) as served:
        bodies: list[dict[str, Any]] = [{}, {"toolwire": {}}, {"toolwire": {"trace": False}}]
        for options in bodies:
            reply = await served.chat(**options)
            assert "toolwire" not in reply.json()
        assert not any(one.trace for one in served.backend.asked)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"toolwire": {"tracing": True}}, "toolwire.tracing"),
        ({"toolwire": {"trace": "yes"}}, "toolwire.trace"),
        ({"toolwire": True}, "toolwire"),
        ({**TRACE, "n": 2}, "toolwire.trace"),
    ],
)
async def test_options_that_cannot_be_honoured_are_refused(serve: Serve, fields: dict[str, Any], param: str) -> None:
    async with serve() as served:
        refused = await served.chat(**fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_strict_servers_know_no_trace(serve: Serve) -> None:
    async with serve(strict=True) as served:
        assert (await served.chat(**TRACE)).json()["error"]["code"] == "unknown_parameter"


SURFACES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "tools": [WEATHER]},
    "/v1/responses": {"input": "Hi", "tools": [{"type": "function", "strict": False, **WEATHER["function"]}]},
    "/v1/messages": {
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"name": "get_weather", "description": "Get the weather", "input_schema": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}],
    },
}  # fmt: skip


@pytest.mark.parametrize("path", SURFACES)
async def test_the_trace_is_the_same_on_every_surface(serve: Serve, reply: Callable[..., Any], path: str) -> None:
    async with serve(reply(CALL)) as served:
        traces = []
        for one in ("/v1/chat/completions", path):
            answer = await served.http.post(one, json={"model": MODEL, **SURFACES[one], **TRACE})
            traces.append(answer.json()["toolwire"]["trace"])
        streamed = await served.http.post(path, json={"model": MODEL, "stream": True, **SURFACES[path], **TRACE})
    chat, other = traces
    assert [token["text"] for token in other["tokens"]] == [token["text"] for token in chat["tokens"]]
    assert "get_weather" in "".join(token["text"] for token in other["prompt"]) and other["grammar"]
    assert streamed.text.count('"trace":{"prompt"') == 1


async def test_a_kept_response_has_no_trace(serve: Serve, reply: Callable[..., Any], state: ResponsesState) -> None:
    """The store would keep the tokens of a long prompt with each response of its conversation."""
    async with serve(reply("Hi"), state=state) as served:
        made = (await served.http.post("/v1/responses", json={"model": MODEL, "input": "Hi", **TRACE})).json()
        assert made["toolwire"]["trace"]["tokens"]
        kept = (await served.http.get(f"/v1/responses/{made['id']}")).json()
        assert "toolwire" not in kept
        body = {"model": MODEL, "input": "Hi", "background": True, **TRACE}
        refused = await served.http.post("/v1/responses", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "toolwire.trace")


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": True, "top_logprobs": 2}])
def test_the_engine_tells_forced_tokens_from_chosen_ones(live: Live, logprobs: dict[str, Any]) -> None:
    """The name of a forced call has no alternative; its city has many."""
    body = {
        "model": "toolwire-demo",
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        **TRACE,
        **logprobs,
    }
    reply = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60).json()
    trace = reply["toolwire"]["trace"]
    assert len(trace["tokens"]) == reply["usage"]["completion_tokens"] == sum(one["tokens"] for one in trace["steps"])
    forced = "".join(one["text"] for one in trace["tokens"] if one.get("forced"))
    chosen = "".join(one["text"] for one in trace["tokens"] if not one.get("forced"))
    assert "get_weather" in forced and "Paris" in chosen and "get_weather" in trace["grammar"]
    assert all(("logprob" in one) == bool(logprobs) for one in trace["tokens"])
    assert [one["stage"] for one in trace["stages"]][:2] == ["arrived", "compiled"]
    assert all(earlier["at_s"] <= later["at_s"] for earlier, later in pairwise(trace["steps"]))
