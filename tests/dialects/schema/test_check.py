"""Refusals of a tool's schema: the field at fault and the message."""

from typing import Any

import pytest

from server.dialects.schema.check import MAX_BYTES, check_answer, check_parameters
from server.dialects.schema.compiled import compiled, supported
from server.dialects.schema.normalize import constrained, normalised
from server.dialects.schema.validate import fits
from server.errors import BadSchema


def with_x(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}, **more}


CLOSED: dict[str, Any] = {"required": ["x"], "additionalProperties": False}


def refusal(schema: Any, strict: bool = False, strict_flag: bool = False) -> str:
    with pytest.raises(BadSchema) as caught:
        check_parameters(schema, strict, strict_flag, "f", "tools[3].function.parameters")
    assert caught.value.param == "tools[3].function.parameters"
    assert caught.value.code == "invalid_function_parameters"
    text = str(caught.value)
    assert text.startswith("Invalid schema for function 'f': ") and "\n" not in text
    return text


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        with_x({"type": "array"}),
        with_x({"type": "string"}, required=None, additionalProperties=None),
        with_x(True),
        with_x({"type": "array", "items": [{"type": "string"}]}),
        with_x({"type": "integer", "minimum": 1, "exclusiveMinimum": True}),
        {"$schema": "http://json-schema.org/draft-07/schema#", "title": "T", **with_x({"type": "string"})},
        {"properties": {"x": {"$ref": "#/definitions/d"}}, "definitions": {"d": {"type": "string", "default": None}}},
    ],
)
def test_supported_schemas_are_accepted(schema: Any) -> None:
    check_parameters(schema, strict=False, strict_flag=True)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string"}, "got 'type: \"string\"'"),
        ({"type": ["object", "null"]}, "schema must be a JSON Schema of 'type: \"object\"'"),
        (7, "schema must be"),
        ([], "schema must be"),
        (with_x({"type": "objekt"}), "('properties', 'x', 'type')"),
        (with_x({"type": "string", "pattern": 7}), "('properties', 'x', 'pattern')"),
        (with_x({"minimum": "low"}), "('properties', 'x', 'minimum')"),
        (with_x({"$ref": 7}), "('properties', 'x'), '$ref' 7 does not point into this schema"),
        (with_x({"const": "y" * 300_000}), "('properties', 'x'), a value or name of 300000 characters"),
        (with_x({"enum": ["a", {"b": "y" * 20_000}]}), "('properties', 'x'), a value or name of 20009 characters"),
        ({"properties": {"y" * 300_000: {}}}, "a value or name of 300000 characters"),
        (with_x(7), "('properties', 'x'), 7 is not a schema"),
        (with_x({"type": "string", "description": "y" * MAX_BYTES}), "bytes long"),
    ],
)
def test_an_invalid_schema_is_refused_with_its_path(schema: Any, words: str) -> None:
    assert words in refusal(schema)


@pytest.mark.parametrize(
    "target", ["#/$defs/gone", "#gone", "", "http://169.254.169.254/latest", "file:///etc/passwd", "other.json#/x"]
)
def test_a_place_whose_reference_points_nowhere_admits_anything_with_a_note(target: str) -> None:
    """Servers that flatten schemas drop `$defs`: the whole request was refused. Addresses are never followed."""
    schema = with_x({"$ref": target, "description": "X"}, **CLOSED)
    check_parameters(schema, strict=False, strict_flag=False)
    tool = compiled(schema)
    assert [note.path for note in tool.notes(False)] == [("properties", "x")]
    assert f"'{target}' does not point into this schema" in tool.notes(False)[0].text
    assert "$ref" not in tool.supported(False).text and fits({"x": [1]}, schema) and not fits({"y": 1}, schema)
    assert "does not point into this schema" in refusal(schema, strict=True)
    assert "does not point into this schema" in refusal(schema, strict_flag=True)


def test_references_by_an_anchor_or_the_schema_s_own_address_are_followed() -> None:
    city = {"type": "string", "$anchor": "city", "$id": "https://a.b/city.json"}
    for target in ("#city", "https://a.b/city.json", "https://a.b/all.json#/$defs/c"):
        schema = {"$id": "https://a.b/all.json", **with_x({"$ref": target}, **CLOSED), "$defs": {"c": city}}
        check_parameters(schema, strict=True, strict_flag=False)
        assert fits({"x": "Rome"}, schema) and not fits({"x": 1}, schema)


@pytest.mark.parametrize("more", [{}, {"additionalProperties": False}])
def test_a_required_member_that_is_not_declared_must_come_and_the_others_stay_constrained(more: Any) -> None:
    """The grammar fell back to any object, and every call was flagged."""
    schema = with_x({"type": "integer"}, required=["x", "y"], **more)
    tool = compiled(schema)
    held = tool.supported(False).schema
    assert held["properties"]["x"]["type"] == "integer" and held["properties"]["y"] == {}
    assert held["additionalProperties"] is False
    assert fits({"x": 1, "y": "any"}, schema) and not fits({"x": 1}, schema) and not fits({"x": "a", "y": 1}, schema)
    assert ["'required' names 'y'" in note.text for note in tool.notes(False)] == ([True] if more else [])
    if more:
        assert "'required' names 'y'" in refusal(schema, strict=True)


@pytest.mark.parametrize("bound", [2**63 - 1, float(2**64), 1e300])
def test_bounds_beyond_64_bits_are_taken(bound: float) -> None:
    """Schemas of Rust and Java programs state the range of their integers."""
    for kind in ("integer", "number"):
        schema = with_x({"type": kind, "minimum": 0, "maximum": bound}, **CLOSED)
        check_parameters(schema, strict=False, strict_flag=False)
        tool = compiled(schema)
        assert tool.supported(False).schema["properties"]["x"]["minimum"] == 0
        assert [note.path for note in tool.notes(False)] == ([] if kind == "integer" else [("properties", "x")])
        assert fits({"x": 5}, schema) and not fits({"x": -5}, schema)
    check_parameters(with_x({"type": "integer", "maximum": bound}, **CLOSED), strict=True, strict_flag=True)


@pytest.mark.parametrize("nest", [lambda inner: with_x(inner), lambda inner: {"type": "array", "items": inner}])
def test_case_31_deep_nesting_is_refused_without_recursion(nest: Any) -> None:
    schema: Any = {}
    for _ in range(5000):
        schema = nest(schema)
    assert "nest deeper" in refusal(with_x(schema))


@pytest.mark.parametrize(
    ("keyword", "schema"),
    [
        ("not", {"not": {"type": "null"}}),
        ("uniqueItems", {"type": "array", "uniqueItems": True}),
        ("if", {"if": {}, "then": {}}),
        ("phone", {"type": "string", "format": "phone"}),
        ("look-around", {"type": "string", "pattern": "(?=a)b"}),
    ],
)
def test_under_strict_an_unsupported_keyword_is_refused_by_name(keyword: str, schema: Any) -> None:
    text = refusal(with_x(schema, **CLOSED), strict=True)
    assert keyword in text and "('properties', 'x')" in text
    check_parameters(with_x(schema, **CLOSED), strict=False, strict_flag=True)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (with_x({"type": "string"}), "'additionalProperties' is required to be supplied and to be false."),
        (with_x({"type": "string"}, additionalProperties=False), "Missing 'x'."),
        (with_x({"allOf": [{}]}, **CLOSED), "'allOf' is not permitted."),
        (with_x({"type": "object", "properties": {}}, **CLOSED), "('properties', 'x'), 'additionalProperties'"),
    ],
)
def test_the_strict_subset_is_required_with_the_server_s_flag(schema: Any, words: str) -> None:
    assert words in refusal(schema, strict=True, strict_flag=True)
    check_parameters(schema, strict=True, strict_flag=False)


def test_case_30_a_recursive_strict_schema_with_unions_is_accepted() -> None:
    node = {
        "type": "object",
        "properties": {
            "v": {"enum": [1, "one", None]},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        },
        "required": ["v", "next"],
        "additionalProperties": False,
    }
    check_parameters(with_x({"$ref": "#/$defs/node"}, **CLOSED, **{"$defs": {"node": node}}), True, True)


def test_an_answer_s_schema_is_refused_by_its_own_field() -> None:
    with pytest.raises(BadSchema) as caught:
        check_answer(with_x({"type": "objekt"}), False, False, "reply")
    assert (caught.value.param, caught.value.code) == ("response_format", "invalid_json_schema")
    check_answer({"type": "array"}, strict=False, strict_flag=True)


def test_objects_take_no_undeclared_members_unless_the_schema_combines_or_says_so() -> None:
    held = constrained(normalised(with_x({"type": "object", "properties": {"y": {"type": "string", "title": "Y"}}})))
    assert held["additionalProperties"] is False and held["properties"]["x"]["additionalProperties"] is False
    assert "title" not in str(held)
    both = with_x({"allOf": [{"properties": {"a": {}}}, {"$ref": "#/$defs/b"}]}, **{"$defs": {"b": with_x({})}})
    assert "additionalProperties" not in str(constrained(normalised(both))["properties"])
    assert "additionalProperties" not in str(constrained(normalised(both))["$defs"])
    assert constrained(normalised(with_x({}, additionalProperties=True)))["additionalProperties"] is True


def test_unsupported_keywords_are_dropped_step_by_step() -> None:
    kept = supported(with_x({"type": "string", "pattern": "(?=a)", "maxLength": 5}), False, "")["properties"]["x"]
    assert kept == {"type": "string", "maxLength": 5}
    assert supported(with_x({"type": "integer", "minimum": 5, "maximum": 1}, required=["x"]), False, "")["properties"]


def test_a_catastrophic_pattern_costs_no_time_when_a_value_is_validated() -> None:
    assert not fits({"x": "a" * 60 + "!"}, with_x({"type": "string", "pattern": "^(a+)+$"}))
