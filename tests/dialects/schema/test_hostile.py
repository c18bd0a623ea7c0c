"""Schemas that cost a server more than they look like, sent to a real one."""

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from server.dialects.schema.satisfiable import satisfiable
from tests.live import Live

LONGEST_S = 40.0  # of one request on a busy machine; what is guarded against took minutes or ended the server


def closed(properties: Mapping[str, Any], required: bool = True) -> dict[str, Any]:
    """An object of these properties alone."""
    names = list(properties) if required else []
    return {"type": "object", "properties": dict(properties), "required": names, "additionalProperties": False}


def send(live: Live, **fields: Any) -> httpx.Response:
    """The reply to a question with these fields, which comes within LONGEST_S."""
    body = {
        "model": "toolwire-demo",
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "max_tokens": 40,
        **fields,
    }
    content = json.dumps(body)
    began_s = time.monotonic()
    reply = httpx.post(
        f"{live.url}/v1/chat/completions", content=content, headers={"content-type": "application/json"}, timeout=120
    )
    assert time.monotonic() - began_s < LONGEST_S
    return reply


def forced(parameters: Any, strict: bool = False) -> dict[str, Any]:
    """Fields that force a call of one function."""
    function = {"name": "f", "parameters": parameters, "strict": strict}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}


def test_no_value_of_a_schema_is_built_to_force_a_call(live: Live) -> None:
    """The shortest value was: 100 MB of text, tokenized, ended the process at 6 GB."""
    long_texts = {"type": "array", "minItems": 1000, "items": {"type": "string", "minLength": 100_000}}
    reply = send(live, **forced(closed({"texts": long_texts})))
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["finish_reason"] == "length"


def test_patterns_of_a_request_are_bounded(live: Live) -> None:
    """8,500 such patterns took 67 s and 8 GB to compile, while every other request waited."""
    pattern = {"type": "string", "pattern": "[\\w\\s]{900}N"}
    one = closed({f"p{i}": pattern for i in range(257)}, required=False)
    three = closed({"a": pattern, "b": pattern, "c": pattern}, required=False)
    many = [{"type": "function", "function": {"name": f"f{i}", "parameters": three}} for i in range(100)]
    for fields in (forced(one), {"tools": many}, {"response_format": json_schema(one)}):
        reply = send(live, **fields)
        assert reply.status_code == 400 and "256 patterns" in reply.json()["error"]["message"]


def test_patterns_that_backtrack_cost_little(live: Live) -> None:
    """Twelve constants, each matched against a hundred of them, stopped the server for 20 s."""
    backtracking = {"anyOf": [{"pattern": f"^(?=a)(a+)+{i}$"} for i in range(100)]}
    constants = {f"c{i}": {"const": "a" * 60 + "!", "if": backtracking} for i in range(12)}
    assert send(live, **forced({"type": "object", "properties": constants})).status_code == 400
    value = {"type": "object", "properties": {"c": {**backtracking, "const": "a" * 6000 + "!"}}}
    began_s = time.process_time()
    assert satisfiable(value).schema["properties"] == {"c": False}
    assert time.process_time() - began_s < 1


def json_schema(schema: Any, strict: bool = False) -> dict[str, Any]:
    """A `response_format` of this schema."""
    return {"type": "json_schema", "json_schema": {"name": "a", "strict": strict, "schema": schema}}


OBJECTS = {"anyOf": [closed({f"k{i}": {"type": "integer"}}) for i in range(1000)]}
OPTIONAL = closed({f"k{i}": {"type": "integer"} for i in range(2000)}, required=False)


@pytest.mark.parametrize("schema", [OBJECTS, OPTIONAL], ids=["objects", "optional"])
def test_a_strict_schema_beyond_the_engine_s_limits_is_refused(live: Live, schema: dict[str, Any]) -> None:
    """The grammar failed at its first mask, which allows only the end: a reply without content, counted as held."""
    for fields in ({"response_format": json_schema(schema, strict=True)}, forced(closed({"a": schema}), strict=True)):
        reply = send(live, **fields)
        assert reply.status_code == 400 and "limit" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "schema",
    [
        closed({"a": {"type": "array", "items": {"type": "integer"}, "maxItems": 1e18}}),
        closed({"a": {"type": "array", "items": {"type": "integer"}, "minItems": 2.0, "maxItems": 10**18}}),
        closed({"a": {"type": "integer", "multipleOf": 999999937}}),
        {"allOf": [{"anyOf": [{"properties": {f"a{i}": {"minimum": j}}} for j in range(8)]} for i in range(8)]},
    ],
    ids=["maxItems", "minItems", "multipleOf", "allOf"],
)
def test_what_a_grammar_cannot_enforce_is_not_enforced_without_strict(live: Live, schema: dict[str, Any]) -> None:
    """They were refused with the generated grammar in the text, or answered `false`."""
    reply = send(live, **forced(schema))
    assert reply.status_code == 200 and reply.json()["choices"][0]["message"]["tool_calls"]


def test_a_value_too_long_for_a_grammar_is_the_request_s_fault(live: Live) -> None:
    """A constant of 300,000 characters was a 500 in the middle of the reply."""
    reply = send(live, response_format=json_schema(closed({"a": {"const": "y" * 300_000}})), max_tokens=400)
    assert reply.status_code == 400, reply.text
    assert "In context=('properties', 'a')" in reply.json()["error"]["message"]


def test_a_repetition_too_long_for_a_grammar_is_not_enforced_and_noted(live: Live) -> None:
    """A repetition of 60,000 was a 500 in the middle of the reply."""
    pattern = {"type": "string", "pattern": "^(ab){60000}$"}
    reply = send(live, response_format=json_schema(closed({"a": pattern})), max_tokens=40)
    assert reply.status_code == 200 and reply.json()["toolwire"]["notes"][0]["kind"] == "schema"
