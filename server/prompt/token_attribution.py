"""Attribution of prompt tokens to the parts of a conversation.

The conversation is rendered once more with marks, lone surrogates that no text holds, inside the text of each part:

    <|im_start|>system\\nBe brief.\\n# Tools...\\n{"name": "look"}\\n</tools>...<|im_end|>\\n<|im_start|>user...
    |---------- system --------|- tools -|- tools[0]:look ---|------ tools -----|---- messages[1] ---

Text between two marks is split where a turn ends (a stop token) or a line does. A token belongs to the part of its
first character, so that the counts always sum up to the prompt.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from server.chat_request import PartTokens
from server.checkpoint.checkpoint import Checkpoint
from server.prompt.normalize import NormalizedMessage
from server.prompt.render import Prompt, Renderer, TemplateInput

MARKS = re.compile("[\ud900-\ud9ff][\uda00-\udaff]")
BASE = 256
MAX_PARTS = BASE * BASE
SYSTEM, TOOLS, REST = "system", "tools", "template"


@dataclass(frozen=True, slots=True)
class Mark:
    """Text of part number `part` at character `at` of the prompt."""

    at: int
    part: int


def attribute(
    checkpoint: Checkpoint,
    renderer: Renderer,
    template_input: TemplateInput,
    prompt: Prompt,
    messages: Sequence[NormalizedMessage],
) -> tuple[PartTokens, ...]:
    """The tokens of each part of a rendered prompt, in the order of the parts; parts without a token are left out.

    Where the template's text changes with the marks in it, everything is attributed to the template.
    """
    parts = [*(_tool_part(tool, i) for i, tool in enumerate(template_input.tools)), *map(_message_part, messages)]
    marked = renderer.render_text(_with_marks(template_input)).text if len(parts) <= MAX_PARTS else ""
    if MARKS.sub("", marked) != prompt.text:
        return (PartTokens(REST, prompt.num_tokens),)
    starts, owners = _regions(prompt, _marks(marked), parts, _CutPoints.of(prompt, checkpoint))
    counts: dict[str, int] = dict.fromkeys([SYSTEM, TOOLS, *parts, REST], 0)
    before = [*renderer.count_before(prompt, starts), prompt.num_tokens]
    for owner, (first, last) in zip(owners, pairwise(before), strict=True):
        counts[owner] += last - first
    return tuple(PartTokens(part, count) for part, count in counts.items() if count)


def _tool_part(tool: Mapping[str, Any], position: int) -> str:
    return f"{TOOLS}[{position}]:{tool.get('function', tool).get('name', '')}"


def _message_part(one: NormalizedMessage) -> str:
    if not one.sources:
        return REST
    return SYSTEM if one.role == "system" and one.sources[0] == 0 else f"messages[{one.sources[0]}]"


def _with_marks(template_input: TemplateInput) -> TemplateInput:
    tools = tuple(_mark_ends(tool, _mark(i)) for i, tool in enumerate(template_input.tools))
    first = len(tools)
    messages = tuple(_mark_message(message, _mark(first + i)) for i, message in enumerate(template_input.messages))
    return replace(template_input, tools=tools, messages=messages)


def _mark(part: int) -> str:
    return chr(0xD900 + part // BASE) + chr(0xDA00 + part % BASE)


def _mark_message(message: Mapping[str, Any], mark: str) -> dict[str, Any]:
    marked = dict(message)
    for key in ("content", "reasoning_content"):
        if isinstance(message.get(key), str):
            marked[key] = _mark_text(message[key], mark)
    if message.get("tool_calls"):
        marked["tool_calls"] = [_mark_call(call, mark) for call in message["tool_calls"]]
    return marked


def _mark_call(call: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """Marks in what names the call: some templates print its id alone."""
    function = {**call["function"], "name": _mark_text(call["function"]["name"], mark)}
    named = {"id": _mark_text(call["id"], mark)} if isinstance(call.get("id"), str) else {}
    return {**call, **named, "function": function}


def _mark_ends(tool: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """Marks in a tool's name and in the last text that its definition holds."""
    function = tool.get("function", tool)
    marked = {**function, "name": _mark_text(function["name"], mark)}
    for key in reversed(list(marked)):
        if key != "name" and _holds_text(marked[key]):
            marked[key] = _mark_last(marked[key], mark)
            break
    return {**tool, "function": marked} if "function" in tool else marked


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_text(item) for item in value.values())
    return any(_holds_text(item) for item in value) if isinstance(value, list) else isinstance(value, str)


def _mark_last(value: Any, mark: str) -> Any:
    if isinstance(value, str):
        return _mark_text(value, mark)
    keys = list(value) if isinstance(value, Mapping) else range(len(value))
    last = next(key for key in reversed(keys) if _holds_text(value[key]))
    marked = dict(value) if isinstance(value, Mapping) else list(value)
    marked[last] = _mark_last(value[last], mark)
    return marked


def _mark_text(text: str, mark: str) -> str:
    """Marks behind the first and before the last visible character, so that trimming and prefix tests see no change."""
    core = text.strip()
    if not core:
        return text
    start = text.find(core)
    end = start + len(core) - 1
    return text[: start + 1] + mark + text[start + 1 : end] + (mark if end > start else "") + text[end:]


def _marks(marked: str) -> list[Mark]:
    found = []
    for i, match in enumerate(MARKS.finditer(marked)):
        mark = match.group()
        found.append(Mark(match.start() - 2 * i, (ord(mark[0]) - 0xD900) * BASE + ord(mark[1]) - 0xDA00))
    return found


@dataclass(frozen=True, slots=True)
class _CutPoints:
    """Where the text can be cut between two messages, best first: ends of turns, special tokens, other tokens."""

    ends: tuple[int, ...]
    specials: tuple[int, ...]
    tokens: tuple[int, ...]

    @staticmethod
    def of(prompt: Prompt, checkpoint: Checkpoint) -> "_CutPoints":
        control = [piece for piece in prompt.pieces if piece.control]
        special = {token.id for token in checkpoint.control_tokens if token.special}
        ends = [piece.end for piece in control if piece.token_ids[0] in checkpoint.stop_ids]
        return _CutPoints(
            tuple(end + prompt.text.startswith("\n", end) for end in ends),
            tuple(piece.start for piece in control if piece.token_ids[0] in special),
            tuple(piece.start for piece in control),
        )

    def cut(self, start: int, end: int) -> int | None:
        """The last good cut after `start`, up to `end`; None if there is none."""
        for places in (self.ends, self.specials, self.tokens):
            index = bisect_right(places, end) - 1
            if index >= 0 and places[index] > start:
                return places[index]
        return None


def _regions(
    prompt: Prompt, marks: Sequence[Mark], parts: Sequence[str], cut_points: _CutPoints
) -> tuple[list[int], list[str]]:
    """Where each region starts, and its part; the first starts at 0."""
    starts, owners = [0], [REST]
    last = len(prompt.text)
    bounds = [(None, None), *((mark.at, parts[mark.part]) for mark in marks), (last, REST)]
    for (left, before), (right, after) in pairwise(bounds):
        assert right is not None and after is not None
        if before != after:
            for at, part in _split_gap(prompt.text, cut_points, (left, right), (before, after)):
                starts.append(max(at, starts[-1]))
                owners.append(part)
    return starts, owners


def _split_gap(
    text: str, cut_points: _CutPoints, gap: tuple[int | None, int], parts: tuple[str | None, str]
) -> Iterator[tuple[int, str]]:
    """Where parts begin between the last mark of one (None: the prompt's start) and the first of the next."""
    left, end = gap
    before, after = parts
    start = left or 0
    cut = cut_points.cut(start, end)
    if before is not None and _is_tool(before) and not _is_tool(after):
        line = text.find("\n", start, end)
        yield (line + 1 if line >= 0 else start + 1), TOOLS
    if _is_tool(after):
        if before is None or not _is_tool(before):
            # A tool is in the turn of the system's text, or in one of its own.
            yield (0 if before is None else cut if cut in cut_points.ends else start + 1), TOOLS
        yield max(start, text.rfind("\n", start, end) + 1), after
    elif before is None:
        yield (cut if cut in cut_points.ends else 0), after  # a finished turn before it: a standard system text
    else:
        yield (cut if cut is not None else max(start + 1, text.rfind("\n", start, end) + 1)), after


def _is_tool(part: str) -> bool:
    return part.startswith(f"{TOOLS}[")
