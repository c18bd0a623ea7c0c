"""Tagged text as JSON, by the schema of its parameter."""

from typing import Any

import pytest

from server.dialects.parsing.coerce import Types, as_json

STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"anyOf": [STRING, True]}, "7"),
        ({"oneOf": [STRING, {}]}, "7"),
        ({"anyOf": [STRING, False]}, '"7"'),
        ({"anyOf": [STRING, {"$ref": "#/$defs/word"}], "$defs": {"word": STRING}}, '"7"'),
        ({"anyOf": [False]}, "7"),
        (True, "7"),
    ],
)
def test_a_union_is_of_strings_only_if_each_of_its_branches_is(schema: Any, expected: str) -> None:
    """A branch that admits everything was passed over, and numbers became strings."""
    assert as_json("7", schema) == (expected, False)
    assert Types({"type": "object", "properties": {"x": schema}}).is_text("x") == (expected == '"7"')
