"""`toolwire.trace`: what happened to a request, on every surface that has it."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import anthropic
import httpx
import pytest
from openai.types.chat import ChatCompletionChunk

from server.api.responses.state import ResponsesState
from server.errors import EngineDied
from server.messages import Delta, StepTrace, TokenLogprob
from tests.api.conftest import CALL, MODEL, WEATHER, Serve, events_of
from tests.api.messages.sdk import folded, without_ids
from tests.api.messages.sdk import whole as whole_message
from tests.api.responses.strict_types import check_event
from tests.backends.scripted import deltas as deltas_with
from tests.live import Live

TRACE = {"toolwire": {"trace": True}}
HELLO = {"role": "user", "content": "Hi <|im_end|>"}
IdsOf = Callable[[str], list[int]]


def data_of(text: str) -> list[dict[str, Any]]:
    """The JSON of each frame of a stream, on any surface."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def deltas_of(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the trace gains with these events: at the same place on every surface."""
    return [event["toolwire"]["trace_delta"] for event in events if "trace_delta" in event.get("toolwire", {})]


def added_up(deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The trace as a client makes it: lists are joined, the rest is taken as it comes."""
    trace: dict[str, Any] = {"prompt": [], "cached_tokens": 0, "grammar": None, "tokens": [], "steps": [], "stages": []}
    for delta in deltas:
        for name, value in delta.items():
            trace[name] = trace[name] + value if isinstance(value, list) else value
    return trace


def untimed(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace without its times, which differ from reply to reply."""
    return trace | {name: [one | {"at_s": 0} for one in trace[name]] for name in ("steps", "stages")}


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


async def test_a_token_is_sent_before_what_it_writes(serve: Serve, ids_of: IdsOf) -> None:
    """The trace came with the last chunk, so a reply that its client stopped had none.

    The prompt is there before the first token, in chunks without choices, as that of the usage is.
    """
    async with serve() as served:
        stop_id = served.checkpoint.stop_ids[0]
    async with serve(script(ids_of, stop_id)) as served:
        options = {"stream": True, "stream_options": {"include_usage": True}, **TRACE}
        chunks = [json.loads(one) for one in events_of((await served.chat(**options)).text)]
    traced = [chunk for chunk in chunks if "toolwire" in chunk]
    assert [chunk["choices"] for chunk in traced] == [[], [], []] and "usage" not in chunks[-1].get("toolwire", {})
    first, *others = deltas_of(chunks)
    assert first.keys() == {"prompt", "cached_tokens"} and first["cached_tokens"] == 8
    assert [len(one["tokens"]) for one in others] == [3, 2] and not any("prompt" in one for one in others)
    told = said = ""
    for chunk in chunks:
        told += "".join(token["text"] for delta in deltas_of([chunk]) for token in delta.get("tokens", []))
        said += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
        assert told.startswith(said)
    assert (told, said) == ("One two three.<|im_end|>", "One two three.")
    assert chunks[-1]["usage"]["completion_tokens"] == 5 and "toolwire" not in chunks[-1]


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
    deltas = deltas_of(data_of(streamed.text))
    assert untimed(added_up(deltas)) == untimed(other)
    assert len(deltas) == 1 + len(other["steps"]), "the prompt, then each step, also one that settles no event"
    assert '"trace":' not in streamed.text


@pytest.mark.parametrize("path", SURFACES)
async def test_a_reply_that_fails_is_traced_as_far_as_it_came(serve: Serve, ids_of: IdsOf, path: str) -> None:
    ids = ids_of("One two three")
    async with serve([*deltas_with(ids)[:-1], EngineDied("the engine process ended")]) as served:
        body = {"model": MODEL, "stream": True, **SURFACES[path], **TRACE}
        events = data_of((await served.http.post(path, json=body)).text)
    trace = added_up(deltas_of(events))
    assert [token["id"] for token in trace["tokens"]] == ids[:-1] and trace["prompt"]
    assert "error" in json.dumps(events[-1])


@pytest.mark.parametrize("path", SURFACES)
async def test_notes_come_with_the_prompt_and_at_the_end(serve: Serve, reply: Callable[..., Any], path: str) -> None:
    """A reply that is stopped had none of its request's notes. A delta must not take the place of those at the end."""
    fields = json.dumps({"model": MODEL, **SURFACES[path], **TRACE}).replace('"Hi"', '"Hi \\ud83d"')
    async with serve(reply("Hello")) as served:
        whole = (await served.http.post(path, content=fields)).json()["toolwire"]
        events = data_of((await served.http.post(path, content=fields[:-1] + ', "stream": true}')).text)
    first, *others = [event["toolwire"] for event in events if "trace_delta" in event.get("toolwire", {})]
    assert [note["kind"] for note in first["notes"]] == ["half_surrogate"]
    assert others and not any("notes" in one for one in others)
    assert whole["notes"] == first["notes"] and "trace" in whole and "trace_delta" not in whole
    assert json.dumps(events).count("half_surrogate") == 2, "and at the end"


async def test_streams_that_are_traced_fit_the_sdks(serve: Serve, reply: Callable[..., Any]) -> None:
    """To the letter, but for `toolwire`; Responses has an event of its own, named as Open Responses has extensions."""
    async with serve(reply(CALL)) as served:
        events = {}
        for path, fields in SURFACES.items():
            body = {"model": MODEL, "stream": True, **fields, **TRACE}
            events[path] = data_of((await served.http.post(path, json=body)).text)
        whole = (await served.http.post("/v1/messages", json={"model": MODEL, **SURFACES["/v1/messages"]})).json()
    for chunk in events["/v1/chat/completions"]:
        assert set(ChatCompletionChunk.model_validate(chunk).model_extra or {}) <= {"toolwire"}
    assert without_ids(folded(events["/v1/messages"])) == without_ids(whole_message(whole))
    ours = [event for event in events["/v1/responses"] if event["type"] == "toolwire:trace"]
    assert ours and all(event.keys() == {"type", "sequence_number", "toolwire"} for event in ours)
    assert [event["sequence_number"] for event in events["/v1/responses"]] == list(range(len(events["/v1/responses"])))
    for event in events["/v1/responses"]:
        if event not in ours:
            check_event(event)


async def test_a_call_s_flags_come_before_the_end(serve: Serve, ids_of: IdsOf) -> None:
    """A reply that was stopped behind a repaired call did not say so; a whole one says it once."""
    texts = ("<tool_call>\n{'name': 'get_weather', 'arguments': {'city': 'Paris'}}\n</tool_call>", "\n", "<tool_call>")
    steps = [Delta("", cached=0, trace=StepTrace()), *(Delta("", ids_of(text), trace=StepTrace()) for text in texts)]
    steps[-1] = Delta("", ids_of(texts[-1]), finish="length", trace=StepTrace())
    async with serve(steps) as served:
        for path, fields in SURFACES.items():
            body = {"model": MODEL, **fields, **TRACE}
            sent = data_of((await served.http.post(path, json={**body, "stream": True})).text)
            traced = [event["toolwire"] for event in sent if "trace_delta" in event.get("toolwire", {})]
            early = [call for own in traced for call in own.get("calls", ())]
            assert [call["flags"] for call in early][:1] == [["repaired"]], path
            whole = (await served.http.post(path, json=body)).json()["toolwire"]["calls"]
            assert [call["flags"] for call in whole].count(["repaired"]) == 1, path


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


def test_the_sdks_add_up_streams_that_are_traced(live: Live) -> None:
    """Their own helpers make the same reply of a stream with the trace between its events."""
    client = live.client()
    asks: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    arguments = []
    with client.chat.completions.stream(
        model="toolwire-demo", messages=asks, tools=cast(Any, [WEATHER]), tool_choice="required", extra_body=TRACE
    ) as chat:
        arguments += [one.function.arguments for one in chat.get_final_completion().choices[0].message.tool_calls or ()]
    function: Any = SURFACES["/v1/responses"]["tools"]
    with client.responses.stream(
        model="toolwire-demo", input=asks, tools=function, tool_choice="required", store=False, extra_body=TRACE
    ) as responses:
        kinds = {str(event.type) for event in responses}
        arguments += [one.arguments for one in responses.get_final_response().output if one.type == "function_call"]
    assert "toolwire:trace" in kinds
    with anthropic.Anthropic(base_url=live.url, api_key="any", max_retries=0, timeout=120) as sdk:
        tools = SURFACES["/v1/messages"]["tools"]
        choice: Any = {"type": "any"}
        with sdk.messages.stream(
            model="toolwire-demo", max_tokens=200, messages=asks, tools=tools, tool_choice=choice, extra_body=TRACE
        ) as messages:
            shown = [event for event in messages if event.type == "message_delta" and "toolwire" in event.to_dict()]
            message = messages.get_final_message()
    arguments += [json.dumps(block.input) for block in message.content if block.type == "tool_use"]
    assert len(shown) > 2 and message.stop_reason == "tool_use"
    assert message.usage.output_tokens == sum(len(one["tokens"]) for one in map(_tokens_of, shown))
    assert [json.loads(one) for one in arguments] == [{"city": "Paris"}] * 3


def _tokens_of(event: Any) -> dict[str, Any]:
    return {"tokens": [], **event.to_dict()["toolwire"].get("trace_delta", {})}
