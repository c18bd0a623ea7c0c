"""References into a schema's parts, as generators of schemas write them where a type occurs twice."""

from typing import Any

import pytest

from server.dialects.base import Choice, Dialect, Tool
from server.dialects.schema.check import check_parameters
from server.dialects.schema.compiled import compiled_tool
from server.dialects.schema.references import with_definitions, with_reached_definitions
from server.dialects.schema.validate import fits
from tests.dialects.fuzz import write_call
from tests.dialects.random_walks import spec_for, walk
from tests.dialects.test_constraints import accepts, check_calls, every_dialect

FORCED = Choice("required", parallel=False)
PLACE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
SCHEMAS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # schema, arguments that satisfy it, arguments that do not
    "a property": (
        {"properties": {"home": PLACE, "work": {"$ref": "#/properties/home"}}},
        {"work": {"city": "Rome"}},
        {"work": {"city": 3}},
    ),
    "a property's property": (
        {"properties": {"home": PLACE, "town": {"$ref": "#/properties/home/properties/city"}}, "required": ["town"]},
        {"town": "Rome"},
        {"town": "Constantinople"},
    ),
    "an item": (
        {"properties": {"all": {"type": "array", "items": PLACE}, "one": {"$ref": "#/properties/all/items"}}},
        {"one": {"city": "Rome"}},
        {"one": {"town": "Rome"}},
    ),
    "an alternative by an escaped name": (
        {"properties": {"a b/c": {"anyOf": [{"type": "null"}, PLACE]}, "x": {"$ref": "#/properties/a%20b~1c/anyOf/1"}}},
        {"x": {"city": "Rome"}},
        {"x": None},
    ),
    "the whole": (
        {"properties": {"n": {"type": "integer"}, "more": {"type": "array", "items": {"$ref": "#"}}}},
        {"more": [{"n": 1, "more": [{"n": 2}]}]},
        {"more": [{"n": "one"}]},
    ),
    "a part of a definition": (
        {"properties": {"x": {"$ref": "#/$defs/home/properties/city"}}, "$defs": {"home": PLACE, "part_0": {}}},
        {"x": "Rome"},
        {"x": "Constantinople"},
    ),
}
every_schema = pytest.mark.parametrize("kind", SCHEMAS)


@every_schema
def test_a_referenced_part_becomes_a_definition_without_a_change_of_meaning(kind: str) -> None:
    schema, good, bad = SCHEMAS[kind]
    moved = with_definitions({"type": "object", **schema})
    assert '"#/properties' not in str(moved).replace("'", '"') and '"$ref": "#"' not in str(moved).replace("'", '"')
    assert fits(good, moved) and not fits(bad, moved)
    assert fits(good, schema) and not fits(bad, schema)


@every_schema
@every_dialect
def test_arguments_follow_a_reference_into_another_part(dialect: Dialect, kind: str) -> None:
    """Unresolved, they do not compile in JSON formats, and admit anything in tagged ones."""
    schema, good, bad = SCHEMAS[kind]
    tool = Tool("look", {"type": "object", **schema})
    for arguments, taken in ((good, True), (bad, False)):
        text = write_call(dialect.name, "look", arguments, 0).removeprefix("\n")
        assert accepts(dialect, spec_for([tool], FORCED), text) is taken
    for seed in range(3):
        written = walk(dialect, spec_for([tool], FORCED), (dialect.name, kind, seed), most=200)
        if written.ended:
            check_calls(dialect, [tool], written.text)


REPAIRED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "a definition under the other keyword": (
        {"properties": {"x": {"$ref": "#/definitions/home"}}, "$defs": {"home": PLACE}},
        {"x": {"city": "Rome"}},
        {"x": {"city": 3}},
    ),
    "a definition of a document around it": (
        {"properties": {"x": {"$ref": "#/components/schemas/home"}}, "definitions": {"home": PLACE}},
        {"x": {"city": "Rome"}},
        {"x": {"city": 3}},
    ),
    "a definition that moved with its user": (
        {
            "properties": {
                "x": {"$ref": "#/$defs/home", "$defs": {"home": PLACE}},
                "y": {"$ref": "#/$defs/home", "$defs": {"home": {"type": "integer"}}},
            }
        },
        {"x": {"city": "Rome"}, "y": 3},
        {"x": {"city": 3}, "y": 3},
    ),
    "a dynamic anchor": (
        {"properties": {"x": {"$dynamicRef": "#place"}}, "$defs": {"home": {"$dynamicAnchor": "place", **PLACE}}},
        {"x": {"city": "Rome"}},
        {"x": {"city": 3}},
    ),
    "the whole, by an older word": (
        {"$recursiveAnchor": True, "properties": {"n": {"type": "integer"}, "more": {"$recursiveRef": "#"}}},
        {"more": {"n": 1}},
        {"more": {"n": "one"}},
    ),
    "required members by their own word": (
        {"properties": {"a": {"type": "integer", "required": True}, "b": {"required": False}}, "required": True},
        {"a": 1},
        {"b": 1},
    ),
    "a required member twice": (
        {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a", "a", None]},
        {"a": 1},
        {"b": 1},
    ),
    "a required member alone": ({"properties": {"a": {}, "b": {}}, "required": "a"}, {"a": 1}, {"b": 1}),
}


@pytest.mark.parametrize("kind", REPAIRED)
@every_dialect
def test_what_other_drafts_and_moved_schemas_say_is_enforced(dialect: Dialect, kind: str) -> None:
    """Such references admitted anything; such lists of required members refused the request."""
    schema, good, bad = REPAIRED[kind]
    for strict in (False, True):
        tool = Tool("look", {"type": "object", "additionalProperties": False, **schema}, strict)
        check_parameters(tool.parameters, strict, strict_flag=False)
        assert compiled_tool(tool).notes(strict) == ()
        for arguments, taken in ((good, True), (bad, False)):
            text = write_call(dialect.name, "look", arguments, 0).removeprefix("\n")
            assert accepts(dialect, spec_for([tool], FORCED), text) is taken
            assert fits(arguments, tool.parameters) is taken


def test_references_to_definitions_or_nowhere_are_unchanged() -> None:
    for schema in (
        True,
        {"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "string"}}},
        {"properties": {"x": {"$ref": "#/properties/gone"}, "y": {"$ref": "https://example.com/a"}}},
        {"properties": {"x": {"const": {"$ref": "#"}}, "$ref": {"type": "string"}}},
        {"properties": {"x": {"$ref": "#/properties"}}},
    ):
        assert with_definitions(schema) is schema


def test_many_references_to_large_parts_do_not_multiply_them() -> None:
    inner: dict[str, Any] = {"type": "string"}
    for i in range(60):
        inner = {"type": "object", "properties": {"x": inner, f"p{i}": {"$ref": "#" + "/properties/x" * (60 - i)}}}
    assert len(str(with_definitions(inner))) < 4 * len(str(inner))


def test_a_schema_keeps_the_definitions_that_it_reaches() -> None:
    """All of them, copied into the rule of each argument, made 112 MB of grammar from 236 KB of schema."""
    shared = {"a/b": {"$ref": "#/$defs/c"}, "c": {"items": {"$ref": "#/$defs/a~1b"}}, "d": {}}
    kept = with_reached_definitions({"items": {"$ref": "#/$defs/a~1b"}, "$defs": shared, "definitions": {"d": {}}})
    assert kept == {"items": {"$ref": "#/$defs/a~1b"}, "$defs": {"a/b": shared["a/b"], "c": shared["c"]}}
    assert with_reached_definitions({"type": "string", "$defs": shared}) == {"type": "string"}
