"""Behaviour that clients of other servers rely on, from the real engine: grammars of answers, names of MCP."""

import json
import re
from typing import Any

import pytest

from tests.contract.requests import MODEL, USER, calls_of, chunks_of, function, ok, post, stream
from tests.live import Live

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def is_of_schema(text: str) -> bool:
    return isinstance(json.loads(text)["n"], int)


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"guided_choice": ["positive", "neg/ative"]}, lambda text: text in ("positive", "neg/ative")),
        ({"guided_regex": "^[a-c]{2,4}/[0-9]{1,3}$"}, re.compile("[a-c]{2,4}/[0-9]{1,3}").fullmatch),
        ({"guided_regex": r"^[\w-\.]{2,4}@x\Z"}, re.compile(r"[\w.-]{2,4}@x").fullmatch),
        ({"guided_grammar": 'root ::= "yes" | "no" [0-9]'}, re.compile("yes|no[0-9]").fullmatch),
        ({"structured_outputs": {"grammar": 'start: "ab"{2}'}}, "abab".__eq__),
        ({"guided_json": SCHEMA}, is_of_schema),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, is_of_schema),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_answer_is_of_its_grammar(live: Live, fields: dict[str, Any], fits: Any) -> None:
    """Ignored in silence, the caller believed in a promise that was not there."""
    for seed in range(2):
        choice = ok(live, **fields, max_tokens=200, seed=seed, temperature=1.5)["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert fits(choice["message"]["content"]), choice


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/responses", {"input": "Hello"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
    ],
)
def test_a_constraint_that_is_not_known_is_refused_on_every_surface(
    live: Live, path: str, fields: dict[str, Any]
) -> None:
    """It was ignored, and the reply was anything."""
    reply = post(live, {"model": MODEL, **fields, "structural_tag": ["a"]}, path=path)
    assert reply.status_code == 400 and "structural_tag" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 50}),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 50}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}),
    ],
)
def test_thousands_of_choices_hold_the_answer_on_every_surface(live: Live, path: str, fields: dict[str, Any]) -> None:
    """They were beyond the limit of custom grammars, and known to Chat alone."""
    choices = [f"choice {i} of many" for i in range(5000)]
    fields = {"model": MODEL, **fields, "guided_choice": choices, "enable_thinking": False}
    body = post(live, fields, path=path).json()
    if path == "/v1/completions":
        text = body["choices"][0]["text"]
    else:
        blocks = body["content"] if path == "/v1/messages" else body["output"][-1]["content"]
        text = blocks[-1]["text"]
    assert text in choices, body


@pytest.mark.parametrize(
    ("path", "fields"), [("/v1/completions", {"prompt": "Hello", "max_tokens": 2}), ("/v1/responses", {"input": "Hi"})]
)
def test_an_unknown_parameter_is_noted_on_other_surfaces(live: Live, path: str, fields: dict[str, Any]) -> None:
    reply = post(live, {"model": MODEL, **fields, "unheard_of": 1}, path=path).json()
    assert [note["param"] for note in reply["toolwire"]["notes"]] == ["unheard_of"]


def test_minus_one_is_no_limit_on_other_surfaces(live: Live) -> None:
    reply = post(live, {"model": MODEL, "input": "Hi", "max_output_tokens": -1}, path="/v1/responses").json()
    assert reply["status"] == "completed" and reply["max_output_tokens"] is None
    fields = {"model": MODEL, "prompt": "Hi", "max_tokens": -1, "stop": "H" * 20, "temperature": 0}
    assert post(live, fields, path="/v1/completions").json()["usage"]["completion_tokens"] > 16


def test_php_s_empty_arrays_are_read_as_objects_on_other_surfaces(live: Live) -> None:
    """PHP writes an empty map as `[]`; requests of such clients were refused."""
    empty = {"type": "object", "properties": []}
    for path, tool, fields in (
        ("/v1/responses", {"type": "function", "name": "look", "parameters": empty}, {"input": "Hi"}),
        ("/v1/messages", {"name": "look", "input_schema": empty}, {"messages": [USER], "max_tokens": 2}),
    ):
        reply = post(live, {"model": MODEL, **fields, "tools": [tool]}, path=path)
        assert reply.status_code == 200, reply.text
        assert [note["kind"] for note in reply.json()["toolwire"]["notes"]] == ["schema"]


def test_a_name_with_a_dot_is_called_whole_and_in_a_stream(live: Live) -> None:
    """MCP servers name tools like this; every request of their clients was refused."""
    tool = function("catalog.get-entity", "Get an entity", city={"type": "string", "maxLength": 5})
    fields: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "seed": 0, "max_tokens": 100}
    (call,) = ok(live, **fields, parallel_tool_calls=False)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "catalog.get-entity"
    ((name, arguments),) = calls_of(stream(live, **fields, parallel_tool_calls=False))
    assert name == "catalog.get-entity"
    assert "city" in json.loads(arguments)


def test_notes_are_in_the_last_chunk_of_a_stream(live: Live) -> None:
    chunks = chunks_of(post(live, stream=True, max_tokens=2, unheard_of=1))
    assert [note["param"] for note in chunks[-1]["toolwire"]["notes"]] == ["unheard_of"]
