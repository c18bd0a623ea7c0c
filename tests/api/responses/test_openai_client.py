"""openai-python against a server process with the built-in model: `create`, `stream`, `parse`."""

import json
import time
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from tests.api.responses.strict_types import check_event, check_response
from tests.dialects.patches import paths_of_patch
from tests.dialects.schema.test_client_grammars import PATCH
from tests.live import Live, live_server

TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    "strict": True,
}
ASKS = "What is the weather in Paris in celsius?"
MODEL = "toolwire-demo"


def test_create_calls_a_tool_and_answers(live: Live) -> None:
    client = live.client()
    first = client.responses.create(model=MODEL, input=ASKS, tools=[TOOL], store=False)
    check_response(first.to_dict())
    (call,) = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
    assert json.loads(call.arguments) == {"city": "Paris", "unit": "celsius"}
    items: Any = [{"role": "user", "content": ASKS}, *(item.to_dict() for item in first.output)]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21}'})
    second = client.responses.create(model=MODEL, input=items, tools=[TOOL], store=False)
    assert "21" in second.output_text
    assert second.usage is not None and second.usage.input_tokens_details.cached_tokens > 0


def test_stream_reads_every_event(live: Live) -> None:
    with live.client().responses.stream(model=MODEL, input=ASKS, tools=[TOOL], store=False) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert "response.function_call_arguments.delta" in kinds
    assert any(item.type == "function_call" for item in final.output)
    with live.client().responses.create(model=MODEL, input=ASKS, tools=[TOOL], store=False, stream=True) as events:
        for event in events:
            check_event(event.to_dict())


class City(BaseModel):
    """An answer of a schema."""

    name: Literal["Paris", "Rome"]


def test_parse_returns_an_instance(live: Live) -> None:
    reply = live.client().responses.parse(model=MODEL, input="Name a city.", text_format=City, store=False)
    assert isinstance(reply.output_parsed, City)


LONG: Any = {"model": MODEL, "input": "Hello", "background": True, "extra_body": {"ignore_eos": True}}


def ended(client: openai.OpenAI, response_id: str) -> Any:
    """The response, polled until it has ended."""
    deadline_s = time.monotonic() + 60
    while (found := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline_s, "it does not end"
        time.sleep(0.1)
    check_response(found.to_dict())
    return found


def test_background_responses_are_polled_resumed_and_cancelled(live: Live) -> None:
    client = live.client()
    begun = client.responses.create(model=MODEL, input=ASKS, tools=[TOOL], background=True)
    assert begun.status in ("queued", "in_progress") and begun.output == []
    assert any(item.type == "function_call" for item in ended(client, begun.id).output)
    with client.responses.create(model=MODEL, input=ASKS, tools=[TOOL], background=True, stream=True) as events:
        seen = [next(iter(events)) for _ in range(3)]  # and the client goes away
    with client.responses.retrieve(seen[0].response.id, stream=True, starting_after=2) as rest:  # type: ignore[union-attr]
        numbers = [event.sequence_number for event in rest]
    assert numbers == list(range(3, 3 + len(numbers))) and len(numbers) > 5
    begun = client.responses.create(**LONG)
    cancelled = client.responses.cancel(begun.id)
    assert cancelled.status == "cancelled" and client.responses.cancel(begun.id) == cancelled


def begin_long(client: openai.OpenAI) -> str:
    """The id of a background response that is being written, for as long as it may."""
    begun = client.responses.create(**LONG)
    while client.responses.retrieve(begun.id).status == "queued":
        time.sleep(0.02)
    return begun.id


def test_what_was_completed_outlives_kill_9_and_what_was_not_has_failed(tmp_path: Path) -> None:
    """What a client saw completed is there after a crash; no background response stays in progress then.

    Nor is the killed server's engine left behind.
    """
    arguments = ("--state-dir", str(tmp_path / "state"), "--drain-timeout-s", "0.5")
    with live_server(*arguments) as server:
        killed, engine = begin_long(server.client()), server.engine()
        with server.client().responses.create(model=MODEL, input=ASKS, tools=[TOOL], stream=True) as events:
            for event in events:
                if event.type == "response.completed":
                    server.process.kill()
                    seen = event.response
                    break  # the end of the stream may be lost
        server.process.wait()
        engine.wait(15)
    with live_server(*arguments) as server:
        client = server.client()
        assert client.responses.retrieve(seen.id).to_dict() == seen.to_dict()
        (call,) = [item for item in seen.output if isinstance(item, ResponseFunctionToolCall)]
        result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21}'}]
        again = client.responses.create(model=MODEL, previous_response_id=seen.id, input=result, tools=[TOOL])
        assert "21" in again.output_text
        assert [item.type for item in client.responses.input_items.list(again.id)] == ["function_call_output"]
        client.responses.delete(again.id)
        conversation = client.conversations.create(items=[{"type": "message", "role": "user", "content": "Hello"}])
        turn = client.responses.create(model=MODEL, conversation=conversation.id, input=ASKS, tools=[TOOL])
        assert len(client.conversations.items.list(conversation.id).data) == 2 + len(turn.output)
        assert httpx.get(f"{server.url}/ready").json()["response_store"] == "ok"
        failed = ended(client, killed)
        assert failed.status == "failed" and "ended before" in failed.error.message
        drained = begin_long(client)
    with live_server(*arguments) as server:
        failed = ended(server.client(), drained)
        assert failed.status == "failed" and "shutting down" in failed.error.message


def test_what_the_built_in_model_writes_begins_a_patch(live: Live) -> None:
    """It was not trained on patches and does not end them: what it has written parses once it is closed."""
    format = {"type": "grammar", "syntax": "lark", "definition": PATCH}
    tool: Any = {"type": "custom", "name": "apply_patch", "format": format}
    fields: dict[str, Any] = {"model": MODEL, "tools": [tool], "tool_choice": {"type": "custom", "name": "apply_patch"}}
    for seed in range(4):
        reply = live.client().responses.create(
            input="Delete a.py.", max_output_tokens=60, store=False, extra_body={"seed": seed}, **fields
        )
        (text,) = [item.input for item in reply.output if item.type == "custom_tool_call"]
        end = "" if reply.status == "completed" else "\n*** End Patch"
        if end and text.split("\n")[-1].startswith("*** Add File: "):
            end = f"\n+{end}"
        assert paths_of_patch(text + end)
