"""Grammar pieces for the arguments of one call, member by member.

The top level of a tool's arguments is written out here rather than left to `%json`: there members may come in any
order (a model that begins with the second optional one must not lose the first), each at most once, and plain numbers
have a last digit. What stands inside a member is `%json`, whose members keep the schema's order.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.dialects.holdable import holdable
from server.dialects.protocol import Tool, Wanted
from server.dialects.schema_forms import COMPACT
from server.dialects.validity import whole_schema

MOST_IN_ANY_ORDER = 24  # members; above, the schema's order holds, which costs the parser less
# Digits must end some time: a weak model would write thirds until its tokens run out.
NUMBER = "NUMBER: /-?(0|[1-9][0-9]{0,18})(\\.[0-9]{1,17})?([eE][-+]?[0-9]{1,3})?/"


@dataclass(frozen=True, slots=True)
class Member:
    """One property: its name, its schema with the whole schema's definitions, whether it must be there."""

    name: str
    schema: Any
    required: bool


def quoted(text: str) -> str:
    """A Lark string literal."""
    return json.dumps(text, ensure_ascii=False)


def json_piece(held: Any, lenient: bool = True) -> str:
    """A grammar piece for compact JSON of a schema that the engine can hold."""
    if held == {"type": "number"}:
        return "NUMBER"
    schema = held if isinstance(held, Mapping) else {} if held else {"not": {}}
    return "%json " + json.dumps({**schema, "x-guidance": {**COMPACT, "lenient": lenient}}, ensure_ascii=False)


def held_arguments(wanted: Wanted, tool: Tool) -> Any:
    """What of a tool's schema the grammar holds; raises BadSchema under strict where that is not all of it."""
    place = next(i for i, other in enumerate(wanted.tools) if other.name == tool.name)
    return holdable(whole_schema(tool), tool.strict, f"tools[{place}].function.parameters")


def members_of(held: Any) -> list[Member] | None:
    """The properties of a plain object; None where the schema says more than properties can."""
    if not isinstance(held, Mapping) or held.get("additionalProperties") is not False:
        return None
    if set(held) - {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}:
        return None
    properties = held.get("properties", {})
    required = held.get("required", [])
    if not set(required) <= set(properties):
        return None
    shared = {key: held[key] for key in ("$defs", "definitions") if key in held}
    return [Member(name, _standing_alone(schema, shared), name in required) for name, schema in properties.items()]


def _standing_alone(schema: Any, shared: Mapping[str, Any]) -> Any:
    return {**schema, **shared} if shared and isinstance(schema, Mapping) and "$ref" in json.dumps(schema) else schema


def object_rules(rule: str, held: Any, lenient: bool) -> Iterator[str]:
    """Rules by which `rule` is the JSON object of this schema."""
    members = members_of(held)
    if members is None or len(members) > MOST_IN_ANY_ORDER:
        yield f"{rule}: {json_piece(held, lenient)}"
        return
    pieces = [
        f"{quoted(json.dumps(m.name, ensure_ascii=False) + ': ')} {json_piece(m.schema, lenient)}" for m in members
    ]
    yield f'{rule}: "{{" {rule}_all "}}"'
    yield from member_rules(f"{rule}_all", members, pieces, quoted(", "))


def member_rules(rule: str, members: list[Member], pieces: list[str], separator: str = "") -> Iterator[str]:
    """Rules by which `rule` is all required members and some others, in any order where an order could lose one."""
    names = [f"{rule}_{i}" for i in range(len(members))]
    if all(member.required for member in members):
        yield f"{rule}: " + (f" {separator} ".join(names) or '""')
    elif len(members) <= MOST_IN_ANY_ORDER:
        yield from _any_order(rule, members, names, separator)
    else:
        yield f"{rule}: " + " ".join(n if m.required else f"{n}?" for n, m in zip(names, members, strict=True))
    for name, piece in zip(names, pieces, strict=True):
        yield f"{name}: {piece}"


def _any_order(rule: str, members: list[Member], names: list[str], separator: str) -> Iterator[str]:
    # The rule's parameter has a bit for each member that was written: llguidance's parametric grammars.
    needed = [f"bit_set({i})" for i, member in enumerate(members) if member.required]
    done = '""' + (f" %if {_all(needed)}" if needed else "")
    yield f"{rule}: {rule}_from::0x0"
    for here, before in ((f"{rule}_from", ""), (f"{rule}_then", f"{separator} ")):
        nexts = [f"{before}{name} {rule}_then::set_bit({i}) %if bit_clear({i})" for i, name in enumerate(names)]
        yield f"{here}::_: " + "\n | ".join([done, *nexts])


def _all(conditions: list[str]) -> str:
    first, *rest = conditions
    return f"and({first}, {_all(rest)})" if rest else first
