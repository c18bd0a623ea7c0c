"""The OpenAPI document of the server, with examples; `/docs` shows it.

The request's schema is the validating one, those of chunks and faults are the structs that are sent.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from server.api.chat.examples import EXAMPLES, FAULTS, REPLY_EXAMPLE, STREAM_EXAMPLES, fault_examples
from server.api.chat.schemas import ChatCompletionRequest
from server.api.chat.wire import ChatCompletion, ChatCompletionChunk
from server.api.errors import ErrorBody
from server.api.openapi.struct_schemas import schemas_of

VERSION = "1"
REF = "#/components/schemas/{name}"
ASKING_FAULTS = tuple(FAULTS)
COUNTING_FAULTS = ("400", "401", "404", "408", "413", "429", "500")
READING_FAULTS = ("401", "429", "500")
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before asking again.", "schema": {"type": "integer"}}}
REQUEST_ID = {"x-request-id": {"description": "The client's own id, or a new one.", "schema": {"type": "string"}}}


def describe() -> dict[str, Any]:
    """The document, complete: every path, every status that it may answer with."""
    _, asked = models_json_schema([(ChatCompletionRequest, "validation")], ref_template="#/components/schemas/{model}")
    sent = schemas_of((ChatCompletion, ChatCompletionChunk, ErrorBody), REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "toolwire", "version": VERSION, "description": "OpenAI-compatible chat with tools."},
        "paths": {**_asking_paths(), **_looking_paths()},
        "components": {
            "schemas": {**asked["$defs"], **sent},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"key": []}, {"x-api-key": []}],
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF.format(name=name)}


def _asking_paths() -> dict[str, Any]:
    part = _object(part={"type": "string"}, tokens={"type": "integer"})
    length = {"type": "integer", "description": "Tokens of prompt and reply together, at most."}
    counted = _object(
        object={"const": "chat.completion.input_tokens"},
        input_tokens={"type": "integer"},
        max_model_len=length,
        parts={"type": "array", "items": part},
    )
    text, ids = _object(prompt={"type": "string"}), _object(tokens=_IDS)
    told = _json(_object(tokens=_IDS, count={"type": "integer"}, max_model_len=length))
    counting = "Count a request's prompt tokens, by part, without answering it."
    hello = {"text": {"value": {"prompt": "Hello!"}}}
    some = {"ids": {"value": {"tokens": [1, 2, 3]}}}
    chat = _ref("ChatCompletionRequest")
    answer = _operation("Answer a conversation, calling tools.", chat, EXAMPLES, _replied(), ASKING_FAULTS)
    count = _operation(counting, chat, EXAMPLES, _json(counted), COUNTING_FAULTS)
    return {
        "/v1/chat/completions": {"post": {**answer, "parameters": [_DEADLINE]}},
        "/v1/chat/completions/input_tokens": {"post": count},
        "/tokenize": {"post": _operation("Plain text in token ids.", text, hello, told, COUNTING_FAULTS)},
        "/detokenize": {"post": _operation("Token ids in text.", ids, some, _json(text), COUNTING_FAULTS)},
    }


def _replied() -> dict[str, Any]:
    events = "Each event is `data: ` and a Chunk, at last `data: [DONE]`. A fault in the middle is an ErrorBody."
    return {
        "description": "The reply, or with `stream` its chunks as server-sent events.",
        "headers": REQUEST_ID,
        "content": {
            "application/json": {"schema": _ref("ChatCompletion"), "example": REPLY_EXAMPLE},
            "text/event-stream": {
                "schema": {"type": "string", "description": events, "contentSchema": _ref("ChatCompletionChunk")},
                "examples": STREAM_EXAMPLES,
            },
        },
    }


def _looking_paths() -> dict[str, Any]:
    named = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    model = {
        "id": "toolwire-demo", "object": "model", "created": 1790000000, "owned_by": "toolwire", "max_model_len": 2048,
    }  # fmt: skip
    block_counts = {"total": 1024, "allowed": 1024, "used": 3, "cached": 40, "free": 981}
    memory = {"object": "memory", "level": "calm", "kv_bytes": 62914560, "blocks": block_counts}
    ready = {"status": "ready", "running": 0, "waiting": 0}
    metrics = '# TYPE toolwire_requests counter\ntoolwire_requests_total{path="/v1/models",outcome="200"} 1.0\n# EOF\n'
    one = _reading("One model.", model, faults=("401", "404", "429", "500"))
    return {
        "/v1/models": {"get": _reading("The models served here: one.", {"object": "list", "data": [model]})},
        "/v1/models/{id}": {"get": {**one, "parameters": named}},
        "/v1/memory": {
            "get": _reading("What the memory guard knows and did.", memory, faults=(*READING_FAULTS, "503"))
        },
        "/health": {"get": _reading("The process lives.", {"status": "ok"}, faults=("500",))},
        "/ready": {
            "get": _reading(
                "The model is loaded and the engine answers; 503 before, with the progress.",
                ready,
                faults=("500", "503"),
            )
        },
        "/metrics": {"get": _reading("Prometheus metrics.", metrics, "application/openmetrics-text")},
    }


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_DEADLINE = {
    "name": "x-request-timeout",
    "in": "header",
    "description": "Extension. Seconds that this request may take; only ever shortens the server's own deadline.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _operation(
    text: str, schema: object, examples: Mapping[str, Any], ok: Mapping[str, Any], faults: Iterable[str]
) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "examples": examples}}
    body = {"required": True, "content": content}
    return {"summary": text, "requestBody": body, "responses": {"200": ok, **_refusals(faults)}}


def _reading(
    text: str, example: Any, media_type: str = "application/json", faults: Iterable[str] = READING_FAULTS
) -> dict[str, Any]:
    ok = {"description": "OK", "content": {media_type: {"schema": {}, "example": example}}}
    return {"summary": text, "responses": {"200": ok, **_refusals(faults)}}


def _refusals(statuses: Iterable[str]) -> dict[str, Any]:
    told = {}
    for status in statuses:
        text, faults = FAULTS[status]
        headers = {**REQUEST_ID, **(RETRY_AFTER if "retry-after" in faults[0].headers else {})}
        content = {"application/json": {"schema": _ref("ErrorBody"), "examples": fault_examples(faults)}}
        told[status] = {"description": text, "headers": headers, "content": content}
    return told


def _json(schema: object) -> dict[str, Any]:
    return {"description": "OK", "headers": REQUEST_ID, "content": {"application/json": {"schema": schema}}}
