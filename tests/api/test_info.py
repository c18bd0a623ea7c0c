"""Routes about the server itself: models, readiness, memory, metrics, token counts, the OpenAPI document."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import jsonschema_rs
import msgspec
import pytest

from server.api.app import create_app
from server.api.responses.state import ResponsesState
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import served_name
from server.errors import EngineDied, Starting
from server.messages import DeviceReading, MemoryReport
from server.prompt.builder import PromptBuilder
from server.settings import ModelSettings, Settings
from server.version import version
from tests.agents.recorder import FIXTURES, read_fixture
from tests.api.conftest import CALL, MODEL, WEATHER, Serve, events_of
from tests.api.test_surfaces import SURFACES
from tests.backends.scripted import PULSE, Script, ScriptedBackend

Reply = Callable[..., Script]
DEVICE = DeviceReading("H100", "GPU-1", "nvml", total=3, used=1, free=2)
MEMORY = MemoryReport(level="tight", kv_bytes=7, devices=(DEVICE,))


async def test_models_are_listed_and_found_by_ids_with_slashes(serve: Serve, checkpoint: Checkpoint) -> None:
    async with serve() as served:
        listed = (await served.http.get("/v1/models")).json()
        assert listed["object"] == "list"
        (model,) = listed["data"]
        assert {name: model[name] for name in ("id", "object", "max_model_len")} == {
            "id": MODEL,
            "object": "model",
            "max_model_len": checkpoint.max_model_len,
        }
        for path in ("/v1/models/org/tiny", "/v1/models/org%2Ftiny"):
            assert (await served.http.get(path)).json() == model
        missing = await served.http.get("/v1/models/none")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("chosen", "status"), [("", 200), ("chosen", 404)])
async def test_the_id_that_the_model_was_given_by_is_served_as_well_unless_a_name_is_chosen(
    checkpoint: Checkpoint, reply: Reply, chosen: str, status: int
) -> None:
    """A client asks for the id that the operator wrote; the notes on the checkpoint are listed with its name."""
    noted = dataclasses.replace(checkpoint, notes=("serving with ReAct prompts",))
    settings = Settings(model=ModelSettings(model="Qwen/Qwen3-0.6B", served_model_name=chosen))
    backend = ScriptedBackend(lambda _: reply("Hi"))
    app = create_app(settings, noted, PromptBuilder(noted, settings), backend, chosen or "Qwen3-0.6B")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        (model,) = (await http.get("/v1/models")).json()["data"]
        assert (model["id"], model["notes"]) == (chosen or "Qwen3-0.6B", ["serving with ReAct prompts"])
        assert (await http.get("/v1/models/Qwen/Qwen3-0.6B")).status_code == status
        body = {"model": "Qwen/Qwen3-0.6B", "messages": [{"role": "user", "content": "Hi"}]}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == status
        assert (await http.post("/v1/chat/completions", json=body | {"model": model["id"]})).status_code == 200


@pytest.mark.parametrize(
    ("given", "asked", "status"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", 200),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B", 200),
        ("Qwen/Qwen3-0.6B", "Other/Qwen3-0.6B", 404),
        ("Qwen/Qwen3-0.6B-GGUF:Q8_0", "Qwen/Qwen3-0.6B-GGUF:Q8_0", 200),
        ("Qwen/Qwen3-0.6B-GGUF:Q8_0", "Qwen3-0.6B-GGUF:Q8_0", 200),
        ("./my-qwen", "./my-qwen", 200),
        ("./my-qwen", "my-qwen", 200),
    ],
)
async def test_every_surface_serves_the_id_that_the_model_was_given_by(
    checkpoint: Checkpoint, reply: Reply, given: str, asked: str, status: int
) -> None:
    """Programs are configured with the id that stands on the hub; a 404 was all that they got."""
    settings = Settings(model=ModelSettings(model=given))
    backend = ScriptedBackend(lambda _: reply("Hi"))
    app = create_app(settings, checkpoint, PromptBuilder(checkpoint, settings), backend, served_name(given, ""))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        for path, body in SURFACES.values():
            answer = await http.post(path, json={**body, "model": asked})
            assert answer.status_code == status, answer.text
            assert status != 200 or answer.json()["model"] == asked
        listed = [one["id"] for one in (await http.get("/v1/models")).json()["data"]]
    assert listed == [served_name(given, "")]


async def test_an_unknown_model_is_a_404_unless_any_name_is_served(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hi")) as served:
        missing = await served.chat(model="gpt-4o")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    async with serve(reply("Hi"), allow_any_model=True) as served:
        assert (await served.chat(model="gpt-4o")).json()["model"] == "gpt-4o"


async def test_alive_at_once_and_ready_when_the_engine_is(serve: Serve) -> None:
    async with serve(pulse=Starting("weights", 0.25)) as served:
        for method in ("GET", "HEAD"):
            for path in ("/", "/health"):
                assert (await served.http.request(method, path)).status_code == 200
        ready = await served.http.get("/ready")
        assert ready.status_code == 503 and int(ready.headers["retry-after"]) <= 120
        assert ready.json()["progress"] == {"stage": "weights", "fraction": 0.25}
        assert ready.json()["error"]["code"] == "model_loading"
    async with serve(pulse=EngineDied("gone")) as served:
        assert (await served.http.get("/ready")).status_code == 503
    async with serve() as served:
        assert (await served.http.get("/ready")).status_code == 200


async def test_memory_is_the_last_report_of_the_guard(serve: Serve) -> None:
    async with serve(pulse=msgspec.structs.replace(PULSE, memory=MEMORY)) as served:
        memory = (await served.http.get("/v1/memory")).json()
        assert (memory["object"], memory["level"], memory["kv_bytes"]) == ("memory", "tight", 7)
    async with serve() as served:
        assert (await served.http.get("/v1/memory")).status_code == 503


async def test_metrics_count_requests_tokens_and_calls(serve: Serve, reply: Reply) -> None:
    pulse = msgspec.structs.replace(PULSE, memory=MEMORY, steps=5)
    async with serve(reply(CALL), pulse=pulse) as served:
        usage = (await served.chat(tools=[WEATHER])).json()["usage"]
        await served.chat(tools=[WEATHER], stream=True)
        await served.chat(temperature=3)
        text = (await served.http.get("/metrics")).text
    path = 'path="/v1/chat/completions"'
    for line in (
        f'toolwire_requests_total{{outcome="200",{path}}} 2.0',
        f'toolwire_requests_total{{outcome="400",{path}}} 1.0',
        'toolwire_tool_calls_total{dialect="hermes",flag="sound"} 2.0',
        f'toolwire_tokens_total{{kind="prompt"}} {2.0 * usage["prompt_tokens"]}',
        f'toolwire_tokens_total{{kind="completion"}} {2.0 * usage["completion_tokens"]}',
        "toolwire_time_to_first_token_seconds_count 2.0",
        "toolwire_request_seconds_count 2.0",
        "toolwire_requests_open 0.0",
        "toolwire_engine_up 1",
        "toolwire_engine_steps_total 5",
        "toolwire_memory_level 1",
        'toolwire_device_free_bytes{device="0",name="H100",uuid="GPU-1"} 2',
        f'toolwire_build_info{{dialect="hermes",version="{version()}"}} 1.0',
    ):
        assert line in text, line


async def test_two_apps_in_one_process_do_not_share_counters(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hi")) as one, serve(reply("Hi")) as other:
        await one.chat()
        assert 'outcome="200"' not in (await other.http.get("/metrics")).text


async def test_counted_input_tokens_are_those_of_the_real_request(serve: Serve, reply: Reply) -> None:
    request: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"}],
        "tools": [WEATHER],
    }
    async with serve(reply("Hi")) as served:
        counted = (await served.http.post("/v1/chat/completions/input_tokens", json=request)).json()
        real = (await served.http.post("/v1/chat/completions", json=request)).json()["usage"]["prompt_tokens"]
        assert counted["input_tokens"] == real == sum(part["tokens"] for part in counted["parts"])
        assert len(served.backend.asked) == 1
        refused = await served.http.post("/v1/chat/completions/input_tokens", json={**request, "n": 0})
        assert refused.status_code == 400


async def test_text_to_ids_and_back(serve: Serve, checkpoint: Checkpoint) -> None:
    async with serve() as served:
        tokenized = (await served.http.post("/tokenize", json={"prompt": "Grüße <|im_end|> 🏔"})).json()
        assert tokenized["count"] == len(tokenized["tokens"]) > 4
        assert checkpoint.marker_ids["<|im_end|>"] not in tokenized["tokens"], "text never becomes a control token"
        back = (await served.http.post("/detokenize", json={"tokens": tokenized["tokens"]})).json()
        assert back == {"prompt": "Grüße <|im_end|> 🏔"}
        for path, body in (
            ("/tokenize", {}),
            ("/tokenize", {"prompt": 7}),
            ("/tokenize", {"prompt": " " * (1 << 21)}),  # took 15 s of a thread that prepares prompts
            ("/detokenize", {"tokens": "x"}),
            ("/detokenize", {"tokens": [-1]}),
            ("/detokenize", {"tokens": [0] * (checkpoint.max_model_len + 1)}),
            ("/detokenize", {"tokens": [1 << 40]}),
            ("/detokenize", {"tokens": [True]}),
        ):
            assert (await served.http.post(path, json=body)).status_code == 400, (path, body)
        assert (await served.http.post("/detokenize", json={"tokens": [999_999]})).status_code == 200


async def test_the_openapi_document_describes_every_route_and_resolves(serve: Serve) -> None:
    async with serve() as served:
        document = (await served.http.get("/openapi.json")).json()
        page = (await served.http.get("/docs")).text
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/chat/completions/input_tokens", "/tokenize", "/detokenize", "/v1/models",
        "/v1/models/{id}", "/v1/memory", "/health", "/ready", "/metrics", "/v1/messages", "/v1/messages/count_tokens",
        "/v1/responses", "/v1/responses/{id}", "/v1/responses/{id}/cancel", "/v1/responses/{id}/input_items",
        "/v1/responses/input_tokens", "/v1/responses/compact",
        "/v1/conversations", "/v1/conversations/{id}", "/v1/conversations/{id}/items",
        "/v1/conversations/{id}/items/{item_id}", "/v1/completions", "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    }  # fmt: skip
    assert document["info"]["version"] == version()

    def check(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                name = value["$ref"].removeprefix("#/components/schemas/")
                assert name in document["components"]["schemas"], value
            for one in value.values():
                check(one)
        elif isinstance(value, list):
            for one in value:
                check(one)

    check(document)
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"tools", "tool_choice", "logit_bias", "thinking_budget"} <= set(fields)
    assert "thinking_budget" in page and "tool result" in page
    assert not any(fetched in page for fetched in ("<script", "src=", "@import")), "it works offline"
    assert fields["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert "error in the middle" in page and "context_length_exceeded" in page


def fits(document: Any, name: str, value: Any) -> None:
    """Raises where a value is not what the document says of it; keys that it does not name are no part of it."""
    schemas = json.loads(json.dumps(document["components"]["schemas"]))
    for kind in (
        "ChatCompletion",
        "ReplyChoice",
        "ReplyMessage",
        "ChatCompletionChunk",
        "ChunkChoice",
        "ChunkDelta",
        "ErrorObject",
    ):
        schemas[kind]["additionalProperties"] = False
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    jsonschema.Draft202012Validator(schema).validate(value)


async def test_what_is_sent_is_what_the_openapi_document_says(serve: Serve, reply: Reply) -> None:
    """A client that is generated from the document must be able to read every reply."""
    async with serve(reply(CALL)) as served:
        document = (await served.http.get("/openapi.json")).json()
        request: dict[str, Any] = {"tools": [WEATHER], "service_tier": "auto"}
        fits(document, "ChatCompletion", (await served.chat(**request)).json())
        events = events_of((await served.chat(**request, stream=True, stream_options={"include_usage": True})).text)
        for event in events:
            fits(document, "ChatCompletionChunk", json.loads(event))
        assert len(events) > 4
        fits(document, "ErrorBody", (await served.chat(n=0)).json())


async def test_the_examples_of_the_openapi_document_fit_it(serve: Serve) -> None:
    async with serve() as served:
        document = (await served.http.get("/openapi.json")).json()
    operations = [one for path in document["paths"].values() for one in path.values()]
    bodies = [one["requestBody"] for one in operations if "requestBody" in one]
    num_fitting = 0
    for described in [*bodies, *(reply for one in operations for reply in one["responses"].values())]:
        json_content = described["content"].get("application/json", {})
        examples = [one["value"] for one in json_content.get("examples", {}).values()]
        for example in examples or [json_content[name] for name in ("example",) if name in json_content]:
            fits(document, json_content["schema"]["$ref"].rsplit("/", 1)[1], example)
            num_fitting += 1
    assert num_fitting > len(bodies)
    assert document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "408", "413", "429", "500", "503", "504"} == set(chat)
    for example in chat["200"]["content"]["text/event-stream"]["examples"].values():
        for event in events_of(example["value"]):
            fits(document, "ErrorBody" if '"error"' in event else "ChatCompletionChunk", json.loads(event))


async def test_bodies_of_conversations_and_their_items_are_typed(serve: Serve, state: ResponsesState) -> None:
    """They were objects of any kind; what is sent and listed must fit what the document says of it."""
    question = {"role": "user", "content": "Hi"}
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "21"}]}
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    custom = {"type": "custom_tool_call", "call_id": "d", "name": "run", "input": "1"}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes"}]}
    items = [
        question,
        thought,
        call,
        result,
        custom,
        {**result, "type": "custom_tool_call_output", "call_id": "d"},
        answer,
    ]
    async with serve(state=state) as served:
        document = (await served.http.get("/openapi.json")).json()
        begun = (await served.http.post("/v1/conversations", json={"items": items, "metadata": {"a": "b"}})).json()
        path = f"/v1/conversations/{begun['id']}"
        listed = (await served.http.get(f"{path}/items", params={"order": "asc"})).json()
        one = (await served.http.get(f"{path}/items/{listed['data'][0]['id']}")).json()
    fits(document, "ConversationBody", {"items": items, "metadata": {"a": "b"}})
    fits(document, "ItemList", listed)
    assert len(listed["data"]) == len(items)
    paths = document["paths"]
    schema = paths["/v1/conversations/{id}/items/{item_id}"]["get"]["responses"]["200"]["content"]["application/json"]
    jsonschema.Draft202012Validator({**schema["schema"], "components": document["components"]}).validate(one)
    for path, bad in (
        ("/v1/conversations", {"items": [{"role": "user"}]}),
        ("/v1/conversations/{id}/items", {"items": [{"type": "function_call", "name": "look"}]}),
        ("/v1/conversations/{id}", {"metadata": {"a": 1}}),
    ):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert body["examples"], path
        validator = jsonschema.Draft202012Validator({**body["schema"], "components": document["components"]})
        assert not validator.is_valid(bad), path


async def test_the_route_of_responses_has_a_reply_and_a_stream_as_examples(serve: Serve) -> None:
    async with serve() as served:
        document = (await served.http.get("/openapi.json")).json()
    content = document["paths"]["/v1/responses"]["post"]["responses"]["200"]["content"]
    fits(document, "ResponseObject", content["application/json"]["example"])
    frames = content["text/event-stream"]["example"].strip().split("\n\n")
    events = [json.loads(frame.partition("data: ")[2]) for frame in frames]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert (
        events[-1]["type"] == "response.completed" and events[-1]["response"] == content["application/json"]["example"]
    )


SCHEMAS = {
    "/v1/chat/completions": "ChatCompletionRequest",
    "/v1/responses": "ResponsesRequest",
    "/v1/messages": "MessagesRequest",
    "/v1/messages/count_tokens": "CountTokensRequest",
}


async def test_the_openapi_document_types_what_programs_send(serve: Serve) -> None:
    """Items and blocks that are objects of any kind in the document tell a reader nothing, or refuse real requests."""
    async with serve() as served:
        document = (await served.http.get("/openapi.json")).json()
    validators = {
        path: jsonschema_rs.validator_for({**document, "$ref": f"#/components/schemas/{name}"})
        for path, name in SCHEMAS.items()
    }
    for fixture in sorted(FIXTURES.glob("*.json")):
        for request in read_fixture(fixture.stem, MODEL):
            validators[request.path.partition("?")[0]].validate(request.body)
    asks = {"model": MODEL, "max_tokens": 1}
    for block in ({"type": "text"}, {"type": "tool_use", "id": "a"}, {"type": "image", "source": {}}, {"text": "Hi"}):
        blocks: list[Any] = [block, {"type": "tool_result", "tool_use_id": "a", "content": [block]}]
        for one in blocks:
            sent = {**asks, "messages": [{"role": "user", "content": [one]}]}
            assert not validators["/v1/messages"].is_valid(sent), one
    items: list[Any] = [
        {"role": "user"},
        {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "a"}]},
        {"type": "function_call", "name": "look"},
        {"type": "function_call_output", "call_id": "a", "output": 1},
        {"text": "Hi"},
    ]
    for item in items:
        assert not validators["/v1/responses"].is_valid({"model": MODEL, "input": [item]}), item
