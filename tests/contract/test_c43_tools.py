"""C43-C54: definitions of tools, valid and invalid."""

import json
from typing import Any

import jsonschema
import pytest

from tests.contract.requests import HELLO, LOCKED, MODEL, NO_ARGUMENTS, SLASHED, USER, fault, ok, post, refused
from tests.live import Live

MISSING = "missing_required_parameter"
NAME = "tools[0].function.name"
PARAMETERS = "tools[0].function.parameters"


def tool(name: str = "f", **others: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **others}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def arguments_of(server: Live, one: dict[str, Any], **fields: Any) -> str:
    """The arguments of a forced call of this tool."""
    name = one["function"]["name"]
    reply = ok(server, tools=[one], tool_choice=named(name), parallel_tool_calls=False, **fields)["choices"][0]
    assert reply["finish_reason"] == "tool_calls", reply
    (call,) = reply["message"]["tool_calls"]
    assert call["function"]["name"] == name
    return str(call["function"]["arguments"])


def test_c43_128_tools(live: Live) -> None:
    reply = ok(
        live, messages=[HELLO], tools=[tool(f"t{i}") for i in range(128)], tool_choice=named("t127"), max_tokens=64
    )
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "t127"


def test_c44_129_tools(live: Live) -> None:
    message = refused(live, "tools", "array_above_max_length", tools=[tool(f"t{i}") for i in range(129)])
    assert message == (
        "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with length 129"
        " instead."
    )


def test_c45_names(live: Live, guarded: Live) -> None:
    for name in ("a b", "a.b"):
        error = fault(post(guarded, tools=[tool(name)], model=SLASHED, headers=LOCKED))
        assert (error["param"], error["code"]) == (NAME, "invalid_value")
        assert "'^[a-zA-Z0-9_-]+$'" in error["message"]
    refused(live, NAME, "invalid_value", tools=[tool("a b")])
    assert fault(post(live, tools=[tool("")]))["param"] == NAME
    error = fault(post(guarded, tools=[tool("x" * 65)], model=SLASHED, headers=LOCKED))
    assert (error["param"], error["code"]) == (NAME, "string_above_max_length")
    ok(live, tools=[tool("a-b_C9"), tool("x" * 65)], max_tokens=1)
    refused(live, NAME, "string_above_max_length", tools=[tool("x" * 129)])


def test_c46_the_same_name_twice(live: Live) -> None:
    refused(live, "tools[1].function.name", "invalid_value", tools=[tool(), tool()])


def test_c47_what_a_tool_lacks(live: Live) -> None:
    refused(live, "tools[0].type", MISSING, tools=[{"function": {"name": "f"}}])
    refused(live, "tools[0].function", MISSING, tools=[{"type": "function"}])
    refused(live, NAME, MISSING, tools=[{"type": "function", "function": {}}])


@pytest.mark.parametrize("parameters", [{}, {"parameters": None}, {"parameters": {}}], ids=str)
def test_c48_no_parameters_are_an_empty_object(live: Live, parameters: dict[str, Any]) -> None:
    one = {"type": "function", "function": {**NO_ARGUMENTS["function"], **parameters}}
    arguments = arguments_of(live, one, max_tokens=64)
    if parameters != {"parameters": {}}:
        assert arguments == "{}"
    assert isinstance(json.loads(arguments), dict)


def test_c49_parameters_that_are_no_object(live: Live) -> None:
    refused(live, PARAMETERS, "invalid_function_parameters", tools=[tool(parameters={"type": "string"})])


def test_c50_strict_demands_the_strict_subset(guarded: Live) -> None:
    one = tool(strict=True, parameters={"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
    error = fault(post(guarded, tools=[one], model=SLASHED, headers=LOCKED))
    assert (error["param"], error["code"]) == (PARAMETERS, "invalid_function_parameters")
    assert "'additionalProperties' is required to be supplied and to be false" in error["message"]


def test_c51_recursive_strict_schema(live: Live) -> None:
    schema = {
        "type": "object",
        "properties": {"node": {"$ref": "#/$defs/node"}},
        "required": ["node"],
        "additionalProperties": False,
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "kind": {"enum": ["leaf", "pair"]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
                },
                "required": ["kind", "children"],
                "additionalProperties": False,
            }
        },
    }
    one = tool("draw", strict=True, parameters=schema)
    fields: dict[str, Any] = {"tools": [one], "tool_choice": named("draw"), "parallel_tool_calls": False}
    # How deep it goes is the model's affair; of eight that go their own ways some end in time, and all of these fit.
    choices = ok(live, **fields, max_tokens=256, n=8, seed=0, temperature=2)["choices"]
    ended = [choice["message"] for choice in choices if choice["finish_reason"] == "tool_calls"]
    assert ended
    for message in ended:
        jsonschema.validate(json.loads(message["tool_calls"][0]["function"]["arguments"]), schema)


def test_c52_nulls_in_a_tool(live: Live) -> None:
    ok(live, tools=[tool(description=None, strict=None)], max_tokens=1)


def test_c53_a_long_description(live: Live) -> None:
    ok(live, messages=[HELLO], tools=[tool(description="word " * 1000)], max_tokens=1)


def test_c54_a_reference_to_nowhere(live: Live) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}
    refused(live, PARAMETERS, "invalid_function_parameters", tools=[tool(parameters=schema, strict=True)])
    reply = ok(live, messages=[USER], tools=[tool(parameters=schema)], max_tokens=1)
    (note,) = reply["toolwire"]["notes"]
    assert note["kind"] == "schema" and note["param"] == "tools[0].function.parameters.properties.a"
    assert post(live, {"model": MODEL, "messages": [HELLO], "max_tokens": 1}).status_code == 200
