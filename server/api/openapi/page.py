"""HTML page of the OpenAPI document: no script, nothing fetched from elsewhere, so it works offline."""

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { border-top: 1px solid #ccc; padding-top: 1rem } code, pre { font: 13px/1.4 ui-monospace, monospace }
pre { background: #f5f5f5; padding: .8rem; overflow: auto } table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid #eee }
summary { cursor: pointer } .method { text-transform: uppercase; font-weight: bold }
"""


def render_page(document: Mapping[str, Any]) -> str:
    """HTML with every operation, its fields, its examples and its replies."""
    info = document["info"]
    body = "\n".join(_operations(document))
    title = html.escape(info["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><p>{html.escape(info['description'])} "
        f'For machines: <a href="openapi.json">openapi.json</a>.</p>\n{body}</body></html>'
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f'<h2><span class="method">{method}</span> <code>{html.escape(path)}</code></h2>'
            yield f"<p>{html.escape(operation['summary'])}</p>"
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            yield from _fields(_resolved(content.get("schema", {}), schemas))
            for name, example in content.get("examples", {}).items():
                yield _folded(f"Example: {name}", example["value"])
            for status, reply in operation["responses"].items():
                yield f"<p><b>{html.escape(status)}</b> {html.escape(reply['description'])}</p>"
                for media in reply.get("content", {}).values():
                    if "example" in media:
                        yield _folded("Example reply", media["example"])
                    for name, example in media.get("examples", {}).items():
                        yield _folded(f"Example reply: {name}", example["value"])
    yield "<h2>Schemas</h2>"
    for name, schema in schemas.items():
        yield _folded(name, schema)


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    if not schema.get("properties"):
        return
    yield "<table><tr><th>field</th><th>type</th><th></th></tr>"
    for name, field in schema["properties"].items():
        needed = " <b>required</b>" if name in schema.get("required", ()) else ""
        text = html.escape(field.get("description", ""))
        cells = (f"<code>{html.escape(name)}</code>", html.escape(_type(field)), text + needed)
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [_type(one) for one in schema.get("anyOf", schema.get("oneOf", ()))]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "enum" in schema:
        return ", ".join(str(one) for one in schema["enum"])
    kind = str(schema.get("type", schema.get("const", "any")))
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    bounds = [str(schema[name]) for name in ("minimum", "maximum") if name in schema]
    return f"{kind} ({' to '.join(bounds)})" if bounds else kind


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    found: Mapping[str, Any] = schemas[reference.rsplit("/", 1)[-1]] if reference else schema
    return found


def _folded(title: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"
