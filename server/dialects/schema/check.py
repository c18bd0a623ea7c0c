"""Check that a JSON Schema can be served: structure, size, references, and every keyword under `strict`.

The output of a model is checked in `validate.py`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from server.dialects.schema.compiled import CompiledTool, compiled, whole_schema
from server.dialects.schema.normalize import constrained
from server.dialects.schema.references import Path, walk
from server.dialects.schema.satisfiable import context
from server.dialects.schema.supported import compile_fault
from server.errors import BadSchema

MAX_DEPTH = 64  # nested schemas; every function below is recursive
MAX_BYTES = 512 * 1024  # of one schema, written as JSON
MAX_NODES = 10_000  # subschemas of one request: each takes some 50 µs to check and to compile
MAX_PATTERNS = 256  # of one request: the validator compiles each, and may try all on one text
MAX_VALUE_LENGTH = 16 * 1024  # characters of one value of `const` and `enum`, of one name: the grammar holds them
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
    schema = whole_schema(parameters)
    check_schema(schema, strict=strict, strict_flag=strict_flag, subject=subject, param=param, code=code)


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
    check_sizes([(param, schema)], code)
    fault = _size_fault(schema)
    if fault is None:
        tool = compiled(schema)
        fault = tool.part(("fault", strict, strict_flag), lambda: _find_fault(tool, schema, strict, strict_flag))
    if fault is not None:
        raise BadSchema(f"{subject}: In context={context(fault[0])}, {fault[1]}", param=param, code=code)


def check_sizes(schemas: Iterable[tuple[str, Any]], code: str = "invalid_function_parameters") -> None:
    """Raise BadSchema where the schemas of one request, each with its param, are too large together to be compiled."""
    num_nodes = num_patterns = 0
    for param, schema in schemas:
        if _size_fault(schema) is not None:  # `check_schema` says which
            continue
        nodes = [node for _, node in walk(schema) if isinstance(node, dict)]
        maps = [node["patternProperties"] for node in nodes if isinstance(node.get("patternProperties"), dict)]
        num_nodes += len(nodes)
        num_patterns += sum("pattern" in node for node in nodes) + sum(map(len, maps))
        for number, most, of in ((num_nodes, MAX_NODES, "subschemas"), (num_patterns, MAX_PATTERNS, "patterns")):
            if number > most:
                text = f"Invalid '{param}': the schemas of a request have at most {most} {of} together; send fewer."
                raise BadSchema(text, param=param, code=code)


Fault = tuple[Path, str]


def _find_fault(tool: CompiledTool, schema: Mapping[str, Any], strict: bool, strict_flag: bool) -> Fault | None:
    for path, node in walk(schema):
        fault = _node_fault(path, node) or (_subset_fault(path, node) if strict and strict_flag else None)
        if fault:
            return fault
    if (strict or strict_flag) and tool.repair_notes:
        note = tool.repair_notes[0]
        return note.path, f"{note.text}."
    if tool.fault:
        return tool.fault
    text = compile_fault(constrained(tool.schema), lenient=False) if strict else ""
    return (_where(schema, text), f"under strict: {text}.") if text else None


def _node_fault(path: Path, node: Any) -> Fault | None:
    if node is None or isinstance(node, bool):
        return None
    if not isinstance(node, Mapping):
        return path, f"{json.dumps(node)[:80]} is not a schema."
    if not isinstance(node.get("$ref"), str | None):
        return path, f"'$ref' {json.dumps(node['$ref'])[:80]} does not point into this schema."
    names = node["properties"] if isinstance(node.get("properties"), Mapping) else ()
    values = node["enum"] if isinstance(node.get("enum"), list) else []
    for value in (*names, *values, node.get("const")):
        length = len(value) if isinstance(value, str) else len(json.dumps(value)) if value else 0
        if length > MAX_VALUE_LENGTH:
            return path, f"a value or name of {length} characters is longer than {MAX_VALUE_LENGTH}."
    return None


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


def _size_fault(schema: Any) -> Fault | None:
    # Breadth first and without recursion: every later step recurses.
    level: list[tuple[Path, Any]] = [((), schema)]
    for _ in range(2 * MAX_DEPTH):  # a schema and the map that holds it are two levels of JSON
        level = [
            ((*path, key), inner)
            for path, value in level
            for key, inner in _children(value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            break
    else:
        return level[0][0][:8], f"schemas nest deeper than {MAX_DEPTH} levels."
    size = len(json.dumps(schema, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return ((), f"the schema is {size} bytes long, at most {MAX_BYTES} are taken.") if size > MAX_BYTES else None


def _children(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _subset_fault(path: Path, node: Any) -> Fault | None:
    """Return what OpenAI's rules for `strict: true` refuse in one subschema."""
    if not isinstance(node, Mapping):
        return None
    for keyword in NOT_STRICT:
        if keyword in node:
            return path, f"'{keyword}' is not permitted."
    if len(path) > 2 * MAX_STRICT_DEPTH + 2:
        return path[:8], f"strict schemas nest at most {MAX_STRICT_DEPTH} levels."
    properties = node.get("properties")
    if node.get("type") != "object" and not isinstance(properties, Mapping):
        return None
    if node.get("additionalProperties") is not False:
        return path, "'additionalProperties' is required to be supplied and to be false."
    names = list(properties or {})
    if len(names) > MAX_STRICT_PROPERTIES:
        return path, f"an object has {len(names)} properties, at most {MAX_STRICT_PROPERTIES} are taken."
    missing = [name for name in names if name not in (node.get("required") or [])]
    if not missing:
        return None
    text = "'required' is required to be supplied and to be an array including every key in properties."
    return path, f"{text} Missing '{missing[0]}'."
