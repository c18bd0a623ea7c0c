"""Unsatisfiable schemas: excluded from the grammar where optional, refused where forced."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from server.dialects.base import Choice, ConstraintSpec, Dialect, ResponseFormat, Tool
from server.dialects.registry import DIALECTS
from server.dialects.schema.normalize import normalised
from server.dialects.schema.satisfiable import CHECK_OVERHEAD_BYTES, MAX_CHECKED_BYTES, satisfiable
from server.errors import BadSchema
from tests.dialects.fuzz import write_call
from tests.dialects.parse_helpers import Call, read, texts_and_calls
from tests.dialects.random_walks import grammars, ids_of, spec_for, walk
from tests.dialects.test_constraints import accepts, check_calls, every_dialect

CROSSED = {"type": "integer", "minimum": 5, "maximum": 3}
IMPOSSIBLE: dict[str, Any] = {
    "false": False,
    "not anything": {"not": {}},
    "no value": {"enum": []},
    "no value of its type": {"type": "string", "enum": [1, 2]},
    "a constant of another type": {"type": "string", "const": 3},
    "bounds": CROSSED,
    "exclusive bounds": {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
    "no integer between": {"type": "integer", "minimum": 0.2, "maximum": 0.8},
    "lengths": {"type": "string", "minLength": 5, "maxLength": 3},
    "a pattern too short": {"type": "string", "pattern": "^a$", "minLength": 5},
    "counts": {"type": "array", "minItems": 3, "maxItems": 1},
    "no item": {"type": "array", "items": {"not": {}}, "minItems": 1},
    "two types": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "two values": {"allOf": [{"enum": ["a"]}, {"enum": ["b"]}]},
    "no alternative": {"anyOf": [{"not": {}}, CROSSED]},
    "a member": {"type": "object", "properties": {"y": CROSSED}, "required": ["y"]},
    "an undeclared member": {"type": "object", "required": ["y"], "additionalProperties": False},
    "a reference": {"$ref": "#/$defs/never"},
    "a reference's reference": {"$ref": "#/$defs/around"},
    "a list without end": {"$ref": "#/$defs/chain"},
    "a tree without leaves": {"$ref": "#/$defs/tree"},
}
DEFINITIONS = {
    "around": {"type": "object", "properties": {"never": {"$ref": "#/$defs/never"}}, "required": ["never"]},
    "never": {"type": "array", "items": CROSSED, "minItems": 1},
    "chain": {"type": "object", "properties": {"next": {"$ref": "#/$defs/chain"}}, "required": ["next"]},
    "tree": {"anyOf": [{"$ref": "#/$defs/chain"}, {"type": "array", "items": {"$ref": "#/$defs/tree"}, "minItems": 1}]},
}
every_kind = pytest.mark.parametrize("schema", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
AUTO, FORCED = Choice("auto"), Choice("required", parallel=False)


def tool_of(schema: Any, *required: str, **more: Any) -> Tool:
    properties = {"xylem": schema, "at": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "required": list(required), "$defs": DEFINITIONS, **more}
    return Tool("look", parameters)


def found(tool: Tool) -> Any:
    return satisfiable(normalised(tool.parameters))


@every_kind
def test_an_unsatisfiable_member_is_dropped_or_makes_its_object_unsatisfiable_if_required(schema: Any) -> None:
    assert found(tool_of(schema)).schema["properties"] == {"xylem": False, "at": {"type": "integer"}}
    needed = found(tool_of(schema, "at", "xylem"))
    assert needed.schema is False and needed.fault[:2] == ("properties", "xylem")


@every_kind
@every_dialect
def test_an_argument_that_nothing_satisfies_cannot_be_begun(dialect: Dialect, schema: Any) -> None:
    """Otherwise a reply in Qwen3-Coder's format opens it and ends inside the call, as no id is allowed next."""
    tool = tool_of(schema)
    begun, _, _ = write_call(dialect.name, "look", {"xylem": 1}, 0).partition("xylem")
    for choice in (AUTO, FORCED):
        constraint = dialect.constrain(spec_for([tool], choice))
        assert constraint is not None
        matcher = grammars().compile(constraint)
        ids = ids_of(f"{begun}xylem".removeprefix("\n" if choice is FORCED else ""))
        assert matcher.count_allowed(ids) < len(ids)
    for seed in range(2):
        written = walk(dialect, spec_for([tool], FORCED), (dialect.name, str(schema), seed), most=80, haste=0.8)
        if written.ended:
            assert all("xylem" not in call.value for call in check_calls(dialect, [tool], written.text))


@pytest.mark.parametrize("kind", IMPOSSIBLE)
@every_dialect
def test_a_call_that_nothing_satisfies_is_refused_if_forced_and_flagged_if_not(dialect: Dialect, kind: str) -> None:
    good, bad = Tool("now"), replace(tool_of(IMPOSSIBLE[kind], "xylem"), param="tools[1].parameters")
    for tools in ([bad], [good, bad]):
        with pytest.raises(BadSchema, match=r"function 'look': In context=\('properties', 'xylem'") as caught:
            dialect.constrain(spec_for(tools, FORCED))
        assert caught.value.param == "tools[1].parameters"
        assert caught.value.code == "invalid_function_parameters"
    assert dialect.constrain(spec_for([good, bad], Choice("required", frozenset({"now"})))) is not None
    value = {"a member": {"y": 1}, "a reference's reference": {"never": 1}}.get(kind, 1)
    text = write_call(dialect.name, "look", {"xylem": value}, 0)
    assert accepts(dialect, spec_for([bad], AUTO), text)
    (call,) = [one for one in texts_and_calls(read(dialect, [bad], [text])) if isinstance(one, Call)]
    assert call.flags == ("invalid",) and call.value["xylem"] in (value, "1")


@every_dialect
def test_a_map_of_arguments_takes_none_that_was_declared_impossible(dialect: Dialect) -> None:
    tool = Tool("look", {"type": "object", "properties": {"xylem": {"not": {}}}, "additionalProperties": True})
    for name, taken in (("xylem", False), ("xylems", True)):
        text = write_call(dialect.name, "look", {name: 1}, 0).removeprefix("\n")
        assert accepts(dialect, spec_for([tool], FORCED), text) is taken


@every_dialect
def test_a_call_of_endless_depth_is_refused_and_one_that_can_end_is_not(dialect: Dialect) -> None:
    """Otherwise such a reply exceeds the limits of the grammar or stops inside the call."""
    below = {"type": "object", "properties": {"below": {"$ref": "#"}, "n": {"type": "integer"}}}
    with pytest.raises(BadSchema, match="function 'look'"):
        dialect.constrain(spec_for([Tool("look", {**below, "required": ["below"]})], FORCED))
    for arguments, taken in (({"below": {"below": {"n": 1}}}, True), ({"below": {"n": "one"}}, False)):
        text = write_call(dialect.name, "look", arguments, 0).removeprefix("\n")
        assert accepts(dialect, spec_for([Tool("look", below)], FORCED), text) is taken


@every_dialect
def test_alternatives_that_nothing_satisfies_are_not_written(dialect: Dialect) -> None:
    parts: list[Mapping[str, Any]] = [
        {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"properties": {"b": CROSSED}, "required": ["b"]},
    ]
    tool = Tool("look", {"type": "object", "anyOf": parts})
    for arguments, taken in (({"a": 4}, True), ({"b": 4}, False)):
        text = write_call(dialect.name, "look", arguments, 0).removeprefix("\n")
        assert accepts(dialect, spec_for([tool], FORCED), text) is taken
    both = Tool("look", {"type": "object", "allOf": [{"properties": {"a": {"type": t}}} for t in ("string", "null")]})
    assert not accepts(dialect, spec_for([both], FORCED), write_call(dialect.name, "look", {"a": None}, 0).strip("\n"))


@every_dialect
def test_more_alternatives_than_are_expanded_admit_the_values_of_each(dialect: Dialect) -> None:
    """The tagged formats must admit all seventeen kinds, not only the last."""
    kinds = [{"properties": {"kind": {"const": f"k{i}"}}, "required": ["kind"]} for i in range(17)]
    tool = Tool("look", {"type": "object", "anyOf": kinds})
    for name in ("k0", "k9", "k16"):
        text = write_call(dialect.name, "look", {"kind": name}, 0).removeprefix("\n")
        assert accepts(dialect, spec_for([tool], FORCED), text)


@every_dialect
def test_strings_of_several_schemas_are_written_as_strings(dialect: Dialect) -> None:
    """In the tagged formats such a string must not be written with quotes, which become part of it."""
    rules = [{"type": "string"}, {"minLength": 2}, {"description": "short", "maxLength": 5}]
    tool = Tool("look", {"type": "object", "properties": {"at": {"allOf": rules}}, "required": ["at"]})
    text = write_call(dialect.name, "look", {"at": "Rome"}, 0).removeprefix("\n")
    assert accepts(dialect, spec_for([tool], FORCED), text)
    (call,) = check_calls(dialect, [tool], text)
    assert call.value == {"at": "Rome"}


@pytest.mark.parametrize("dialect", DIALECTS[:1])
def test_an_unsatisfiable_response_format_is_refused_with_its_path(dialect: Dialect) -> None:
    schema = {"type": "object", "properties": {"n": CROSSED}, "required": ["n"]}
    with pytest.raises(BadSchema, match=r"\('properties', 'n'\)") as caught:
        dialect.constrain(ConstraintSpec([], Choice("none"), ResponseFormat(schema), {}))
    assert (caught.value.param, caught.value.code) == ("response_format", "invalid_json_schema")


def test_a_satisfiable_schema_is_unchanged() -> None:
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
    schema = {
        "type": "object",
        "properties": {
            "list": {"$ref": "#/$defs/node"},
            "kind": {"type": "string", "enum": ["a", "b"]},
            "n": {"type": "integer", "minimum": 1, "maximum": 1},
            "text": {"minimum": 5, "maximum": 3},  # a string is neither
            "code": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 2},
            "not this": {"not": {"type": "string"}},
        },
        "required": ["list", "n"],
        "$defs": {"node": node},
    }
    assert satisfiable(schema).schema == schema


def test_the_work_on_a_schema_full_of_contradictions_is_bounded() -> None:
    """Each is a question to the grammar engine; what is beyond the bound stays as if it could be satisfied."""
    schema = {"type": "object", "properties": {f"p{i}": IMPOSSIBLE["two types"] for i in range(3000)}}
    properties = satisfiable(schema).schema["properties"]
    found = [name for name in properties if properties[name] is False]
    assert 0 < len(found) <= MAX_CHECKED_BYTES // CHECK_OVERHEAD_BYTES and found == list(properties)[: len(found)]
