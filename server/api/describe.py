"""The OpenAPI document of the server, with examples; `/docs` shows it. The request's schema is the validating one."""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from server.api.schemas import ChatRequest

VERSION = "1"
REF = "#/components/schemas/{model}"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
}
QUESTION = {"role": "user", "content": "What is the weather in Paris in celsius?"}
CALL = {
    "id": "call_b3Kd92mXqLw07TzVnRfYpGhA",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "celsius"}'},
}
ASK: Mapping[str, Any] = {"model": "toolwire-demo", "messages": [QUESTION], "tools": [WEATHER]}
EXAMPLES: Mapping[str, Any] = {
    "tool call": {"value": ASK},
    "streamed": {"value": {**ASK, "stream": True, "stream_options": {"include_usage": True}}},
    "forced": {"value": {**ASK, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}},
    "tool result": {
        "value": {
            **ASK,
            "messages": [
                QUESTION,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": CALL["id"], "content": '{"temperature": 21}'},
            ],
        }
    },
    "structured answer": {
        "value": {
            "model": "toolwire-demo",
            "messages": [{"role": "user", "content": "Name a city."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "city",
                    "strict": True,
                    "schema": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}},
                        "required": ["name"],
                        "additionalProperties": False,
                    },
                },
            },
        }
    },
}
REPLY_EXAMPLE: Mapping[str, Any] = {
    "id": "chatcmpl-5yGqkD0w3XtZbN1cVfRmLpHs",
    "created": 1790000000,
    "model": "toolwire-demo",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "tool_calls": [CALL],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {
        "prompt_tokens": 180,
        "completion_tokens": 27,
        "total_tokens": 207,
        "prompt_tokens_details": {"cached_tokens": 160, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    },
    "object": "chat.completion",
    "system_fingerprint": None,
}


def describe() -> dict[str, Any]:
    """The document, complete: every path, every status that it may answer with."""
    _, definitions = models_json_schema([(ChatRequest, "validation")], ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "toolwire", "version": VERSION, "description": "OpenAI-compatible chat with tools."},
        "paths": {**_asking_paths({"$ref": REF.format(model="ChatRequest")}), **_looking_paths()},
        "components": {
            "schemas": {**definitions["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _asking_paths(chat: object) -> dict[str, Any]:
    counted = {"type": "object", "properties": {"input_tokens": {"type": "integer"}, "parts": {"type": "array"}}}
    replied = {
        "description": "The reply, or with `stream` its chunks as server-sent events.",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": REPLY_EXAMPLE},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    text, ids = _object(prompt={"type": "string"}), _object(tokens=_IDS)
    told = _json(_object(tokens=_IDS, count={"type": "integer"}))
    counting = "Count a request's prompt tokens, by part, without answering it."
    hello = {"text": {"value": {"prompt": "Hello!"}}}
    some = {"ids": {"value": {"tokens": [1, 2, 3]}}}
    return {
        "/v1/chat/completions": {"post": _operation("Answer a conversation, calling tools.", chat, EXAMPLES, replied)},
        "/v1/chat/completions/input_tokens": {"post": _operation(counting, chat, EXAMPLES, _json(counted))},
        "/tokenize": {"post": _operation("Plain text in token ids.", text, hello, told)},
        "/detokenize": {"post": _operation("Token ids in text.", ids, some, _json(text))},
    }


def _looking_paths() -> dict[str, Any]:
    named = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    return {
        "/v1/models": {"get": _reading("The models served here: one.")},
        "/v1/models/{id}": {"get": {**_reading("One model."), "parameters": named}},
        "/v1/memory": {"get": _reading("What the memory guard knows and did.")},
        "/health": {"get": _reading("The process lives.")},
        "/ready": {"get": _reading("The model is loaded and the engine answers; 503 before, with the progress.")},
        "/metrics": {"get": _reading("Prometheus metrics.", "text/plain")},
    }


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_FAULTS = {
    "4XX": {
        "description": "The request cannot be served as it stands, or not by this key.",
        "content": {"application/json": {"schema": {"$ref": REF.format(model="Error")}}},
    },
    "5XX": {
        "description": "A fault of the server, or the model is not loaded yet (503 with Retry-After).",
        "content": {"application/json": {"schema": {"$ref": REF.format(model="Error")}}},
    },
}


def _operation(text: str, schema: object, examples: Mapping[str, Any], ok: Mapping[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"summary": text, "requestBody": {"required": True, "content": content}, "responses": {"200": ok, **_FAULTS}}


def _reading(text: str, media_type: str = "application/json") -> dict[str, Any]:
    ok = {"description": "OK", "content": {media_type: {"schema": {}}}}
    return {"summary": text, "responses": {"200": ok, **_FAULTS}}


def _json(schema: object) -> dict[str, Any]:
    return {"description": "OK", "content": {"application/json": {"schema": schema}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}
