"""Hermes calls without their tag, as Qwen2.5-Coder writes them: `<tools>{...}</tools>`, or fenced JSON.

Users ask for JSON in fences too. So these are calls only if there is nothing but objects that name offered tools with
arguments that satisfy the schema; anything else is text, and nothing is held back once that is certain.
"""

import json
import re
from typing import Any

from server.dialects.base import Tool
from server.dialects.parsing.text_buffer import EventSink, Openers, ParserCoroutine, TextBuffer
from server.dialects.schema.validate import ToolSet
from server.events import Flag

ENDS = {"<tools>": "</tools>", "```json": "```"}
OPENERS = tuple(ENDS)
HEAD = re.compile(r'\s*\[?\s*\{\s*"name"\s*:\s*"([^"\\\n]{1,256})"')
HEAD_LETTERS = re.compile(r'\[?(?:\{(?:"(?:n(?:a(?:m(?:e(?:"(?::(?:"[^"\\\n]{0,256})?)?)?)?)?)?)?)?)?')
LONGEST = 64 * 1024  # characters held back at most


def read(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, opener: str) -> ParserCoroutine:
    """Read on from the opener; calls if all is well, text if not."""
    buffer.record()
    buffer.take(len(opener))
    end = ENDS[opener]
    while not (head := HEAD.match(buffer.text, buffer.at)):
        if buffer.ended or not HEAD_LETTERS.fullmatch(_without_space(buffer.rest)):
            sink.text(buffer.recorded())
            return
        yield
    close = Openers(end)
    while tool_set.find(head.group(1)) is not None:
        found = close.search(buffer.text, buffer.at)
        stop = found.start() if found else len(buffer.text) - close.overlap(buffer.rest)
        if stop - buffer.at > LONGEST:
            break
        if found and (calls := _calls(buffer.text[buffer.at : stop], tool_set)):
            buffer.take(found.end() - buffer.at)
            _deliver(calls, sink, buffer.recorded())
            return
        if found or buffer.ended:
            break
        yield
    sink.text(buffer.recorded())


def _without_space(text: str) -> str:
    head, quote, name = text.partition(":")
    return "".join(head.split()) + quote + name.lstrip()


def _calls(text: str, tool_set: ToolSet) -> list[tuple[Tool, str]]:
    """Every object as a call, or none at all."""
    try:
        found = json.loads(text)
    except ValueError:
        found = _lines(text)
    calls: list[tuple[Tool, str]] = []
    for item in found if isinstance(found, list) else [found]:
        tool = tool_set.find(str(item.get("name"))) if isinstance(item, dict) else None
        if tool is None or tool.custom or not set(item) <= {"name", "arguments"}:
            return []
        arguments = json.dumps(item.get("arguments", {}), ensure_ascii=False)
        if tool_set.validate(tool, arguments):
            return []
        calls.append((tool, arguments))
    return calls


def _lines(text: str) -> list[Any]:
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return []


def _deliver(calls: list[tuple[Tool, str]], sink: EventSink, raw: str) -> None:
    flags: tuple[Flag, ...] = ("repaired",)
    for tool, arguments in calls:
        sink.open(tool.name, custom=False)
        sink.arguments(arguments)
        sink.close(flags, raw)
