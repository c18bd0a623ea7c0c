"""Recorder of the requests that programs send, and fixtures of their shapes.

A fixture keeps every field and type as it came. Of texts it keeps the length: `~306` is prose of 306 characters.
Ids are numbered; the model's name, grammars and the first line that Claude Code changes in each request have marks of
their own. What a request repeats of an earlier one is named, not kept again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

FIXTURES = Path(__file__).parent / "fixtures"
PROSE = "Read the file before you change it, and say which of the tests failed. "
BILLING = "x-anthropic-billing-header:"
# A patch format, with the features of Lark that clients use.
GRAMMAR = """start: head section+ tail
head: "*** Begin Patch" LF
tail: "*** End Patch" LF?
section: "*** Add File: " /(.+)/ LF line+
line: "+" /(.*)/ LF -> line
%import common.LF
"""
KEPT = frozenset(
    [
        "type",
        "role",
        "name",
        "status",
        "mode",
        "effort",
        "reasoning_effort",
        "summary",
        "verbosity",
        "format",
        "syntax",
        "tool_choice",
        "truncation",
        "service_tier",
        "detail",
        "ttl",
        "display",
        "include",
        "required",
        "enum",
        "const",
        "default",
        "$schema",
        "$ref",
        "prompt_cache_retention",
    ]
)
ID_KEYS = frozenset(["id", "call_id", "tool_call_id", "tool_use_id", "item_id", "previous_response_id"])
OWN = ("arguments", "input")
CALLS = ("function_call", "tool_use", "custom_tool_call")
PLAIN = re.compile(r"[\w.$:/#-]{1,64}")
LISTS = ("messages", "input")


@dataclass(frozen=True, slots=True)
class SentRequest:
    """One POST: its path with the query, and its body."""

    path: str
    body: dict[str, Any]


@dataclass(slots=True)
class Recorder:
    """Keeps the POSTs that an application gets."""

    requests: list[SentRequest] = field(default_factory=list)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application behind this recorder."""

        async def recording(scope: Scope, receive: Receive, send: Send) -> None:
            pieces: list[bytes] = []

            async def passed() -> Message:
                message = await receive()
                if message["type"] == "http.request":
                    pieces.append(message.get("body", b""))
                    if not message.get("more_body") and b"".join(pieces).startswith(b"{"):
                        query = scope["query_string"].decode()
                        path = scope["path"] + ("?" + query if query else "")
                        self.requests.append(SentRequest(path, json.loads(b"".join(pieces))))
                return message

            await app(scope, passed if scope["type"] == "http" else receive, send)

        return recording


@dataclass(slots=True)
class Shaper:
    """Replaces what is not shape in the requests of one program."""

    _ids: dict[str, str] = field(default_factory=dict)

    def shape(self, value: Any, key: str = "", number: int = 0) -> Any:
        """The value of this key in request `number`, its texts as lengths."""
        if isinstance(value, dict):
            is_call = value.get("type") in CALLS
            return {
                name: one if name in OWN and (is_call or is_argument(one, value)) else self.shape(one, name, number)
                for name, one in value.items()
            }
        if isinstance(value, list):
            return [self.shape(one, key, number) for one in value]
        if not isinstance(value, str) or not value:
            return value
        if key == "model":
            return "~model"
        if key == "definition":
            return "~grammar"
        if value.startswith(BILLING):
            return f"~billing {number}"
        if key in ID_KEYS:
            kind = re.match(r"[a-z]+_", value)
            return self._ids.setdefault(value, f"{kind.group() if kind else 'id_'}{len(self._ids)}")
        return value if key in KEPT and PLAIN.fullmatch(value) else f"~{len(value)}"


def is_argument(value: Any, owner: Mapping[str, Any]) -> bool:
    """Whether this is what a call of `owner` is called with: the scripted model's own words."""
    return isinstance(value, str) and "name" in owner


def expanded(value: Any, model: str) -> Any:
    """The value with prose in the place of lengths."""
    if isinstance(value, dict):
        return {key: expanded(item, model) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item, model) for item in value]
    match re.fullmatch(r"~(\d+|model|grammar|billing \d+)", value) if isinstance(value, str) else None:
        case re.Match() as found:
            mark = found.group(1)
            if mark.isdigit():
                return (PROSE * (int(mark) // len(PROSE) + 1))[: int(mark)]
            number = mark.removeprefix("billing ")
            return {"model": model, "grammar": GRAMMAR}.get(
                mark, f"{BILLING} version=1.{number}; check={number}f{number};"
            )
    return value


def packed(requests: Sequence[SentRequest]) -> list[dict[str, Any]]:
    """Shapes of the requests; what the one before to the same path has too is left out."""
    shaper, shapes, last = Shaper(), list[dict[str, Any]](), dict[str, int]()
    bodies: list[dict[str, Any]] = []
    for number, request in enumerate(requests):
        body = shaper.shape(request.body, number=number)
        bodies.append(body)
        shape: dict[str, Any] = {"path": request.path}
        before = last.get(request.path)
        if before is not None:
            same = [key for key, value in body.items() if key not in LISTS and bodies[before].get(key) == value]
            repeated = {key: _num_equal(bodies[before].get(key), body[key]) for key in LISTS if key in body}
            shape |= {"after": before, "same": same, "repeated": repeated}
            body = {key: value[repeated.get(key, 0) :] if key in LISTS else value for key, value in body.items()}
            body = {key: value for key, value in body.items() if key not in same}
        shapes.append({**shape, "body": body})
        last[request.path] = number
    return shapes


def unpacked(shapes: Sequence[Mapping[str, Any]], model: str) -> list[SentRequest]:
    """The requests of a fixture, in their order."""
    requests: list[SentRequest] = []
    for shape in shapes:
        body = expanded(shape["body"], model)
        if "after" in shape:
            before = requests[shape["after"]].body
            body |= {key: before[key] for key in shape["same"]}
            body |= {key: [*before[key][:count], *body[key]] for key, count in shape["repeated"].items() if count}
        requests.append(SentRequest(shape["path"], body))
    return requests


def write_fixture(name: str, requests: Sequence[SentRequest]) -> None:
    """Write the fixture of a program's requests, an item of its lists a line."""
    lines = []
    for shape in packed(requests):
        body = ",\n  ".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in shape.pop("body").items())
        lines.append(f'{json.dumps(shape)[:-1]}, "body": {{\n  {body}}}}}')
    FIXTURES.mkdir(exist_ok=True)
    (FIXTURES / f"{name}.json").write_text("[" + ",\n ".join(lines) + "]\n", encoding="utf-8")


def read_fixture(name: str, model: str) -> list[SentRequest]:
    """The requests of a program."""
    return unpacked(json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8")), model)


def _num_equal(old: Any, new: Any) -> int:
    """Number of first items that two lists have in common."""
    if not isinstance(old, list) or not isinstance(new, list):
        return 0
    pairs = zip(old, new, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(old), len(new)))


def _lines(value: Any) -> str:
    items = [json.dumps(item, ensure_ascii=False) for item in value] if isinstance(value, list) else []
    return "[" + ",\n   ".join(items) + "]" if items else json.dumps(value, ensure_ascii=False)
