"""The JSON schemas of what the server sends, from the structs that are sent; msgspec's own takes no union of them."""

import inspect
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def schemas_of(kinds: Iterable[type[msgspec.Struct]], ref: str) -> dict[str, Any]:
    """The schemas of these structs and of all within them, by name; `ref` makes a reference of a `{name}`.

    A field that may be UNSET is left out where it is, so it is not required; one with a default is sent all the same,
    unless its struct omits defaults.
    """
    schemas: dict[str, Any] = {}
    for kind in kinds:
        _add(kind, ref, schemas)
    return schemas


def _add(kind: type[msgspec.Struct], ref: str, schemas: dict[str, Any]) -> None:
    if kind.__name__ in schemas:
        return
    schemas[kind.__name__] = {}  # its place, should it hold itself
    fields = msgspec.structs.fields(kind)
    omits = kind.__struct_config__.omit_defaults
    optional = {one.name for one in fields if msgspec.UnsetType in get_args(one.type) or (omits and not one.required)}
    schemas[kind.__name__] = {
        "type": "object",
        "description": inspect.getdoc(kind),
        "properties": {one.encode_name: _of(one.type, ref, schemas) for one in fields},
        "required": [one.encode_name for one in fields if one.name not in optional],
    }


def _of(kind: Any, ref: str, schemas: dict[str, Any]) -> dict[str, Any]:
    if kind is Any:
        return {}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        _add(kind, ref, schemas)
        return {"$ref": ref.format(name=kind.__name__)}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is list:
        return {"type": "array", "items": _of(inner[0], ref, schemas)}
    if origin in (Union, UnionType):
        kinds = [_of(one, ref, schemas) for one in inner if one is not msgspec.UnsetType]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {"type": _PLAIN[kind]}
