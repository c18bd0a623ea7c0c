"""Check that a JSON Schema can be served: structure, size, references, and every keyword under `strict`.

The output of a model is checked in `validate.py`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs

from server.dialects.schema.normalize import constrained, normalised
from server.dialects.schema.references import Path, walk
from server.dialects.schema.satisfiable import context
from server.dialects.schema.supported import compile_fault
from server.dialects.schema.validate import compile_validator
from server.errors import BadSchema

MAX_DEPTH = 64  # nested schemas; every function below is recursive
MAX_BYTES = 512 * 1024  # of one schema, written as JSON
MAX_PATTERNS = 256  # of one schema, and of one request: the validator compiles each, and may try all on one text
MAX_STRICT_DEPTH = 10
MAX_STRICT_PROPERTIES = 5000
NOT_STRICT = ("allOf", "not", "dependentRequired", "dependentSchemas", "if", "then", "else", "patternProperties")


def check_parameters(
    parameters: Any,
    strict: bool,
    strict_flag: bool,
    name: str = "",
    param: str = "tools[0].function.parameters",
) -> None:
    """Raise BadSchema where a function's `parameters` cannot be served; None and `{}` mean no arguments.

    `strict` is the function's own: every keyword must be supported by the constraint. `strict_flag` is the
    server's: OpenAI's subset rules apply to strict functions too. `param` names the field in the error.
    """
    if parameters is None:
        return
    subject = f"Invalid schema for function '{name}'"
    code = "invalid_function_parameters"
    _check_root(parameters, subject, param, code)
    check_schema(parameters, strict=strict, strict_flag=strict_flag, subject=subject, param=param, code=code)


def check_answer(schema: Any, strict: bool, strict_flag: bool, name: str = "", param: str = "response_format") -> None:
    """Raise BadSchema where the schema of a `response_format` cannot be served; `param` is the field that has it."""
    subject = f"Invalid schema for {param} '{name}'" if name else f"Invalid schema for {param}"
    code = "invalid_json_schema"
    if not isinstance(schema, Mapping):
        raise BadSchema(f"{subject}: it must be an object.", param=param, code=code)
    check_schema(schema, strict=strict, strict_flag=strict_flag, subject=subject, param=param, code=code)


def check_schema(
    schema: Mapping[str, Any], *, strict: bool, strict_flag: bool, subject: str, param: str, code: str
) -> None:
    """Raise BadSchema naming the place at fault; linear in the size of the schema."""

    def refuse(path: Path, fault: str) -> BadSchema:
        return BadSchema(f"{subject}: In context={context(path)}, {fault}", param=param, code=code)

    _check_size(schema, refuse)
    if count_patterns(schema) > MAX_PATTERNS:
        raise refuse((), f"it has more than {MAX_PATTERNS} patterns.")
    for path, node in walk(schema):
        if not isinstance(node, Mapping | bool):
            raise refuse(path, f"{json.dumps(node)[:80]} is not a schema.")
        reference = node.get("$ref") if isinstance(node, Mapping) else None
        if reference is not None and not (isinstance(reference, str) and reference.startswith("#")):
            raise refuse(path, f"'$ref' {json.dumps(reference)[:80]} does not point into this schema.")
        if strict and strict_flag and isinstance(node, Mapping):
            _check_subset(path, node, refuse)
    tidy = normalised(schema)
    fault = _meta_fault(tidy)
    if fault:
        raise refuse(fault[0], fault[1])
    if strict:
        fault_text = compile_fault(constrained(tidy), lenient=False)
        if fault_text:
            raise refuse(_where(schema, fault_text), f"under strict: {fault_text}.")


def count_patterns(schema: Any) -> int:
    """Return the number of regular expressions in a schema."""
    nodes = [node for _, node in walk(schema) if isinstance(node, Mapping)]
    maps = [node["patternProperties"] for node in nodes if isinstance(node.get("patternProperties"), Mapping)]
    return sum("pattern" in node for node in nodes) + sum(map(len, maps))


def _where(schema: Any, fault: str) -> Path:
    """Return the path of the first subschema with a keyword, pattern or format that the fault quotes, else the root."""
    for path, node in walk(schema):
        if isinstance(node, Mapping) and any(
            f'"{key}"' in fault or (key in ("pattern", "format") and str(value) in fault) for key, value in node.items()
        ):
            return path
    return ()


def _check_root(parameters: Any, subject: str, param: str, code: str) -> None:
    kind = parameters.get("type", "object") if isinstance(parameters, Mapping) else None
    if kind == "object" or (kind is None and isinstance(parameters, Mapping)):
        return
    shown = kind if isinstance(kind, str) else json.dumps(kind) if kind else type(parameters).__name__
    raise BadSchema(
        f"{subject}: schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{shown}\"'.",
        param=param,
        code=code,
    )


def _check_size(schema: Any, refuse: Any) -> None:
    # Breadth first and without recursion: every later step recurses.
    level: list[tuple[Path, Any]] = [((), schema)]
    for _ in range(2 * MAX_DEPTH):  # a schema and the map that holds it are two levels of JSON
        level = [
            ((*path, key), inner)
            for path, value in level
            for key, inner in _children(value)
            if isinstance(inner, Mapping | list)
        ]
        if not level:
            break
    else:
        raise refuse(level[0][0][:8], f"schemas nest deeper than {MAX_DEPTH} levels.")
    size = len(json.dumps(schema, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise refuse((), f"the schema is {size} bytes long, at most {MAX_BYTES} are taken.")


def _children(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _check_subset(path: Path, node: Mapping[str, Any], refuse: Any) -> None:
    """OpenAI's rules for `strict: true`."""
    for keyword in NOT_STRICT:
        if keyword in node:
            raise refuse(path, f"'{keyword}' is not permitted.")
    if len(path) > 2 * MAX_STRICT_DEPTH + 2:
        raise refuse(path[:8], f"strict schemas nest at most {MAX_STRICT_DEPTH} levels.")
    properties = node.get("properties")
    is_object = node.get("type") == "object" or isinstance(properties, Mapping)
    if not is_object:
        return
    if node.get("additionalProperties") is not False:
        raise refuse(path, "'additionalProperties' is required to be supplied and to be false.")
    names = list(properties or {})
    if len(names) > MAX_STRICT_PROPERTIES:
        raise refuse(path, f"an object has {len(names)} properties, at most {MAX_STRICT_PROPERTIES} are taken.")
    missing = [name for name in names if name not in (node.get("required") or [])]
    if missing:
        raise refuse(
            path,
            "'required' is required to be supplied and to be an array including every key in properties. "
            f"Missing '{missing[0]}'.",
        )


def _meta_fault(schema: Any) -> tuple[Path, str] | None:
    """Return path and text of what makes a schema invalid: a keyword of a wrong type, a bad pattern or `$ref`."""
    try:
        compile_validator(schema)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        path = tuple(getattr(error, "instance_path", ()))
        return path, str(getattr(error, "message", error)).splitlines()[0][:300] + "."
    return None
