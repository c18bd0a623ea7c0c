"""Rules of a Lark grammar for the compact JSON of a schema.

Plain objects, arrays and unions become rules, everything else uses `%json`. In rules, members may come in any order
(a model that begins with the second optional one must not lose the first), each at most once, and the number of
digits is bounded; `%json` keeps the schema's order and does not bound the digits.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.dialects.schema.normalize import COMPACT, LARGEST_INTEGER
from server.dialects.schema.references import DEFINITIONS, definitions_of, resolved

MAX_UNORDERED_MEMBERS = 24  # above, the schema's order applies, which is faster to parse
MAX_MAP_MEMBERS = 256  # members of an object whose names are free
MAX_DEPTH = 24  # of nested rules; deeper schemas use `%json`
PLAIN_OBJECT = {"type", "properties", "required", "additionalProperties", *DEFINITIONS}
PLAIN_LIST = {"type", "items", "minItems", "maxItems", *DEFINITIONS}
PLAIN_MAP = {"type", "additionalProperties", "minProperties", "maxProperties", *DEFINITIONS}
SCALARS = {"string": "json_string", "number": "NUMBER", "integer": "INTEGER", "boolean": "BOOLEAN", "null": '"null"'}
BOUNDED_INTEGER = {"type": "integer", "minimum": -LARGEST_INTEGER, "maximum": LARGEST_INTEGER}

# Digits are bounded: a weak model would write those of 1/3 up to the token limit.
SHARED_RULES = (
    "NUMBER: /-?(0|[1-9][0-9]{0,18})(\\.[0-9]{1,17})?([eE][-+]?[0-9]{1,2})?/",
    "INTEGER: /-?(0|[1-9][0-9]{0,17})/",
    'BOOLEAN: "true" | "false"',
    "json_string: %json " + json.dumps({"type": "string", "x-guidance": COMPACT}),
    'any_value: json_string | NUMBER | BOOLEAN | "null" | any_object | any_list',
    f'any_object: "{{" (any_member (", " any_member){{0,{MAX_MAP_MEMBERS - 1}}})? "}}"',
    'any_member: json_string ": " any_value',
    'any_list: "[" (any_value (", " any_value)*)? "]"',
)


def quoted(text: str) -> str:
    """Return a Lark string literal."""
    return json.dumps(text, ensure_ascii=False)


class JsonRules:
    """Rules for the JSON of one schema and its parts; their names begin with `prefix`.

    `lenient` ignores keywords that `%json` does not support; otherwise such a grammar does not compile.
    """

    def __init__(self, prefix: str, lenient: bool) -> None:
        self._prefix = prefix
        self._lenient = lenient
        self._named: dict[str, str] = {}  # targets of references
        self._count = 0
        self.lines: list[str] = []

    def piece(self, schema: Any, depth: int = 0) -> str:
        """Return an expression for a value of this schema."""
        if schema is True or (isinstance(schema, Mapping) and not set(schema) - set(DEFINITIONS)):
            return "any_value"
        if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
            return self._left_to_json(schema)
        keywords = {key: value for key, value in schema.items() if key not in DEFINITIONS}
        kind = keywords.get("type")
        if keywords == {"type": kind} and isinstance(kind, str) and kind in SCALARS:
            return SCALARS[kind]
        if keywords == BOUNDED_INTEGER:
            return "INTEGER"
        if set(keywords) == {"$ref"}:
            return self._reference(schema, depth)
        if len(keywords) == 1 and ("anyOf" in keywords or "oneOf" in keywords):
            branches = next(iter(keywords.values()))
            return self._either([self.piece(self._standing_alone(b, schema), depth + 1) for b in branches])
        if isinstance(kind, list) and set(keywords) == {"type"}:
            return self._either([self.piece({"type": one}, depth + 1) for one in kind])
        if kind == "array" and set(schema) <= PLAIN_LIST and keywords.get("items", True) is not False:
            return self._list(schema, depth)
        if kind == "object" and keywords != {"type": "object"} and set(schema) <= PLAIN_MAP:
            return self._map(schema, depth)
        members = plain_members(schema)
        if members is not None and len(members) <= MAX_UNORDERED_MEMBERS:
            return self._object(members, schema, depth)
        return "any_object" if keywords == {"type": "object"} else self._left_to_json(schema)

    def members(self, rule: str, pieces: Sequence[tuple[str, bool]], separator: str = "") -> None:
        """Add `rule`: all required and some optional members; `pieces` are expressions and whether each is required."""
        names = [f"{rule}_{i}" for i in range(len(pieces))]
        self.lines += [f"{name}: {piece}" for name, (piece, _) in zip(names, pieces, strict=True)]
        if all(required for _, required in pieces):
            self.lines.append(f"{rule}: " + (f" {separator} ".join(names) or '""'))
        elif len(pieces) <= MAX_UNORDERED_MEMBERS:
            self.lines += _any_order(rule, names, [required for _, required in pieces], separator)
        else:
            each = [name if required else f"{name}?" for name, (_, required) in zip(names, pieces, strict=True)]
            self.lines.append(f"{rule}: " + " ".join(each))

    def name(self) -> str:
        """Return the name of a new rule."""
        self._count += 1
        return f"{self._prefix}_{self._count}"

    def _object(self, members: Mapping[str, tuple[Any, bool]], schema: Mapping[str, Any], depth: int) -> str:
        rule = self.name()
        pieces = [
            (f"{quoted(quoted(name) + ': ')} {self.piece(self._standing_alone(inner, schema), depth + 1)}", required)
            for name, (inner, required) in members.items()
        ]
        self.members(f"{rule}_all", pieces, quoted(", "))
        return f'"{{" {rule}_all "}}"'

    def _list(self, schema: Mapping[str, Any], depth: int) -> str:
        item, rule = self.piece(self._standing_alone(schema.get("items", True), schema), depth + 1), self.name()
        self.lines.append(f"{rule}: {item}")
        return f'"[" {_repeated(rule, schema.get("minItems", 0), schema.get("maxItems"))} "]"'

    def _map(self, schema: Mapping[str, Any], depth: int) -> str:
        value, rule = (
            self.piece(self._standing_alone(schema.get("additionalProperties", True), schema), depth + 1),
            self.name(),
        )
        self.lines.append(f'{rule}: json_string ": " ({value})')
        low, high = schema.get("minProperties", 0), schema.get("maxProperties", MAX_MAP_MEMBERS)
        return f'"{{" {_repeated(rule, low, max(low, high))} "}}"'

    def _reference(self, schema: Mapping[str, Any], depth: int) -> str:
        target = str(schema["$ref"])
        if not target.startswith(tuple(f"#/{key}/" for key in DEFINITIONS)):
            return self._left_to_json(schema)
        if target not in self._named:
            self._named[target] = self.name()  # before its rule is written: it may be recursive
            self.lines.append(f"{self._named[target]}: {self.piece(resolved(schema), depth + 1)}")
        return self._named[target]

    def _either(self, pieces: Sequence[str]) -> str:
        return f"({' | '.join(dict.fromkeys(pieces))})"

    def _left_to_json(self, schema: Any) -> str:
        held = schema if isinstance(schema, Mapping) else {} if schema else {"not": {}}
        options = {**COMPACT, "lenient": self._lenient}
        return "%json " + json.dumps({**held, "x-guidance": options}, ensure_ascii=False)

    def _standing_alone(self, inner: Any, schema: Mapping[str, Any]) -> Any:
        shared = definitions_of(schema)
        return {**inner, **shared} if shared and isinstance(inner, Mapping) and '"$ref"' in json.dumps(inner) else inner


def plain_members(schema: Any) -> dict[str, tuple[Any, bool]] | None:
    """Return members and whether each is required, of an object with no other keywords than PLAIN_OBJECT; else None."""
    if not isinstance(schema, Mapping) or set(schema) - PLAIN_OBJECT or schema.get("additionalProperties") is not False:
        return None
    properties, required = schema.get("properties", {}), set(schema.get("required", ()))
    if not required <= set(properties) or any(properties[name] is False for name in required):
        return None
    return {name: (inner, name in required) for name, inner in properties.items() if inner is not False}


def _repeated(rule: str, low: int, high: int | None) -> str:
    if high is not None and high <= 0:
        return '""'
    if high == 1:  # llguidance does not support {0,0}
        return rule if low else f"({rule})?"
    count = "*" if low <= 1 and high is None else f"{{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
    more = f'(", " {rule}){count}'
    return f"{rule} {more}" if low else f"({rule} {more})?"


def _any_order(rule: str, names: Sequence[str], required: Sequence[bool], separator: str) -> Iterator[str]:
    # The parameter of the rule has a bit for each member written so far (llguidance's parametric grammars).
    needed = [f"bit_set({i})" for i, one in enumerate(required) if one]
    done = '""' + (f" %if {_all(needed)}" if needed else "")
    yield f"{rule}: {rule}_from::0x0"
    for here, before in ((f"{rule}_from", ""), (f"{rule}_then", f"{separator} ")):
        nexts = [f"{before}{name} {rule}_then::set_bit({i}) %if bit_clear({i})" for i, name in enumerate(names)]
        yield f"{here}::_: " + "\n | ".join([done, *nexts])


def _all(conditions: Sequence[str]) -> str:
    first, *rest = conditions
    return f"and({first}, {_all(rest)})" if rest else first
