"""Ids of Kimi-K2's calls: tools whose own names look like such an id, and ids that models shorten."""

import pytest

from server.dialects.base import Tool
from server.dialects.kimi_k2 import KIMI_K2
from tests.dialects.fuzz import write_call
from tests.dialects.parse_helpers import Call, parse_in_any_pieces

NAMES = ("functions.x:0", "functions.x", "x:0", "a:b", "a.b", "a.b:7", "functions.", ":0", "functions:x")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beside", [(), ("x",), NAMES])
def test_a_tool_named_like_an_id_is_called(name: str, beside: tuple[str, ...]) -> None:
    tools = [Tool(one) for one in {name, *beside}]
    assert parse_in_any_pieces(KIMI_K2, tools, write_call("kimi_k2", name, {}, 3)) == [Call(name, "{}")]


@pytest.mark.parametrize(
    ("call_id", "tools", "name"),
    [
        ("functions.x:0", ("functions.x:0",), "functions.x:0"),
        ("functions.x:0", ("functions.x:0", "x"), "x"),
        ("functions.x:0", ("x:0",), "x:0"),
        ("functions.x", ("functions.x",), "functions.x"),
        ("functions.x:4", ("functions.x",), "functions.x"),
        ("x", ("x",), "x"),
        ("x:1", ("x",), "x"),
        ("a:b", ("a:b",), "a:b"),
    ],
)
def test_an_id_without_its_prefix_or_number_names_the_tool_that_there_is(
    call_id: str, tools: tuple[str, ...], name: str
) -> None:
    """The tool `functions.x:0` could not be called by its own name: the call was text."""
    text = f"<|tool_call_begin|>{call_id}<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
    assert parse_in_any_pieces(KIMI_K2, [Tool(one) for one in tools], text) == [Call(name, "{}")]
