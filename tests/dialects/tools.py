"""Two hundred tools over ten domains, with every keyword of JSON Schema that a grammar can hold."""

import random
from collections.abc import Callable
from typing import Any

from server.dialects.base import Tool

DOMAINS: dict[str, tuple[str, ...]] = {
    "weather": ("city", "country", "days", "unit", "hourly", "stations", "range", "note"),
    "mail": ("to", "subject", "body", "cc", "priority", "attachments", "send_at", "draft"),
    "calendar": ("title", "start", "end", "guests", "repeat", "room", "private", "reminders"),
    "shop": ("sku", "quantity", "price", "coupon", "address", "gift", "items", "currency"),
    "files": ("path", "mode", "content", "recursive", "patterns", "limit", "encoding", "owner"),
    "code": ("language", "source", "args", "timeout", "env", "sandbox", "stdin", "version"),
    "travel": ("from", "to", "date", "passengers", "class", "stops", "budget", "flexible"),
    "bank": ("account", "amount", "currency", "memo", "recurring", "recipient", "limit", "tags"),
    "home": ("room", "device", "level", "scene", "color", "schedule", "on", "sensors"),
    "science": ("formula", "temperature", "pressure", "sample", "replicates", "units", "matrix", "protocol"),
}
TREE = {
    "type": "object",
    "properties": {"value": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
    "required": ["value", "next"],
    "additionalProperties": False,
}
UNION = [{"type": "string", "maxLength": 5}, {"type": "integer", "minimum": 10}]
SCHEMAS: tuple[Callable[[random.Random], Any], ...] = (
    lambda _: {"type": "string"},
    lambda _: {"type": "integer"},
    lambda _: {"type": "number"},
    lambda _: {"type": "boolean"},
    lambda _: {"type": "string", "enum": ["low", "high", 'quo"ted', "zwei Wörter"]},
    lambda _: {"enum": [1, "one", None, True, 2.5]},
    lambda _: {"const": "fixed"},
    lambda _: {"const": {"kind": "a", "n": [1, 2]}},
    lambda c: {"type": "string", "minLength": c.randint(0, 3), "maxLength": c.randint(4, 12)},
    lambda _: {"type": "string", "pattern": "^[A-Z]{2,3}-\\d{1,4}$"},
    lambda _: {"type": "string", "pattern": "x+y?"},
    lambda c: {"type": "string", "format": c.choice(("date", "time", "date-time", "email", "ipv4", "uuid", "uri"))},
    lambda c: {"type": "integer", "minimum": c.randint(-20, 0), "maximum": c.randint(1, 50)},
    lambda _: {"type": "integer", "exclusiveMinimum": 0, "multipleOf": 5},
    lambda _: {"type": "number", "minimum": -1.5, "maximum": 2.5},
    lambda _: {"type": ["string", "null"]},
    lambda _: {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    lambda _: {"anyOf": UNION},
    lambda _: {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    lambda _: {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    lambda _: {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 2},
    lambda _: {
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "integer"}],
        "items": False,
        "minItems": 2,
    },
    lambda _: {
        "type": "object",
        "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}, "name": {"type": "string"}},
        "required": ["lat", "lon"],
        "additionalProperties": False,
    },
    lambda _: {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
    lambda _: {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    lambda _: {"$ref": "#/$defs/tree"},
    lambda _: {"$ref": "#/$defs/level"},
    lambda _: {},
)


def make_tools(count: int = 200) -> list[Tool]:
    """Return that many tools, the same at every call, from each domain in turn."""
    return [_tool(number) for number in range(count)]


def _tool(number: int) -> Tool:
    chance = random.Random(f"tool {number}")
    domain = list(DOMAINS)[number % len(DOMAINS)]
    names = chance.sample(DOMAINS[domain], number // len(DOMAINS) % 6)
    # One schema after another, so that each is in some tools.
    properties = {name: SCHEMAS[(number * 3 + i) % len(SCHEMAS)](chance) for i, name in enumerate(names)}
    schema: dict[str, Any] = {
        "type": "object",
        "description": f"How to use {domain}.",
        "properties": properties,
        "required": [name for name in names if chance.random() < 0.6],
    }
    if chance.random() < 0.5:
        schema["additionalProperties"] = False
    if any("$ref" in str(one) for one in properties.values()):
        schema["$defs"] = {"tree": TREE, "level": {"enum": ["one", "two"]}}
    if not names and number % 20 == 0:
        return Tool(f"{domain}_{number}")
    return Tool(f"{domain}_{number}", schema)
