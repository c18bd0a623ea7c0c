"""Every example of docs/internals/dialects.md is run."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.dialects.base import CustomFormat, Tool
from server.dialects.registry import DIALECTS, find
from server.events import CallOpened, ParserEvent
from tests.dialects.parse_helpers import Call, cut_evenly, read, texts_and_calls

PAGE = Path(__file__).parents[2] / "docs" / "internals" / "dialects.md"
EXAMPLE = re.compile(r"\*\*(?P<title>[^*]+)\*\*\n\n~~~text\n(?P<text>.*?)\n~~~\n\n```python\n(?P<events>.*?)\n```\n\n"
                     r"```json\n(?P<reply>.*?)\n```", re.DOTALL)  # fmt: skip


def declared_tools() -> list[Tool]:
    """Return the tools that the page declares."""
    declared = re.search(r"```json\n(\[.*?\])\n```", PAGE.read_text(), re.DOTALL)
    assert declared
    tools = []
    for one in json.loads(declared.group(1)):
        function, custom = one.get("function"), one.get("custom")
        if function:
            tools.append(Tool(function["name"], function.get("parameters")))
        else:
            grammar = custom.get("format", {}).get("grammar")
            form = CustomFormat(grammar["syntax"], grammar["definition"]) if grammar else None
            tools.append(Tool(custom["name"], custom=True, format=form))
    return tools


def examples() -> Iterator[Any]:
    """Yield dialect, text, events and reply of each."""
    for section in PAGE.read_text().split("\n## ")[1:]:
        name = section.splitlines()[0].strip("`")
        for found in EXAMPLE.finditer(section):
            yield pytest.param(name, *found.group("text", "events", "reply"), id=f"{name}: {found.group('title')}")


def message(events: list[ParserEvent]) -> dict[str, Any]:
    """Return the assistant's message, without ids."""
    custom = {event.index for event in events if isinstance(event, CallOpened) and event.custom}
    parts = texts_and_calls(events)
    calls = [part for part in parts if isinstance(part, Call)]
    texts = [part for part in parts if isinstance(part, str)]
    tool_calls: list[dict[str, Any]] = [
        {"custom": {"name": call.name, "input": call.arguments}}
        if i in custom
        else {"function": {"name": call.name, "arguments": call.arguments}}
        for i, call in enumerate(calls)
    ]
    return {"content": "".join(texts) or None, **({"tool_calls": tool_calls} if tool_calls else {})}


@pytest.mark.parametrize(("name", "text", "events", "reply"), list(examples()))
def test_an_example_of_the_page_is_correct(name: str, text: str, events: str, reply: str) -> None:
    dialect, tools = find(name), declared_tools()
    found = read(dialect, tools, [text])
    assert ast.dump(ast.parse("\n".join(map(repr, found)))) == ast.dump(ast.parse(events))
    assert message(found) == json.loads(reply)
    for size in (1, 4):
        assert read(dialect, tools, cut_evenly(text, size)) == found


def test_every_dialect_has_its_examples() -> None:
    shown = [parameters.values[0] for parameters in examples()]
    for dialect in DIALECTS:
        assert shown.count(dialect.name) >= 4, dialect.name
