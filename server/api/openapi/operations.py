"""Declarations of bodies, replies and errors that routes hand to FastAPI."""

from collections.abc import Mapping
from typing import Any

import msgspec

from server.api.body import bad
from server.api.errors import ApiError, ErrorBody, error_of, no_such_model, too_large, unexpected
from server.errors import DeadlinePassed, EngineDied, NoMemory, PromptTooLong, QueueFull, Starting

REF = "#/components/schemas/{name}"
REQUEST_ID = {"x-request-id": {"description": "The client's own id, or a new one.", "schema": {"type": "string"}}}
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before a retry.", "schema": {"type": "integer"}}}
Responses = dict[int | str, dict[str, Any]]

_TOO_HOT = "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead."
_TOO_LONG = "This model's maximum context length is 2048 tokens. However, your messages resulted in 3000 tokens."
_ERRORS: Mapping[int, tuple[str, tuple[ApiError, ...]]] = {
    400: (
        "The request cannot be served as it stands; the first error in OpenAI's order of fields.",
        (
            bad(_TOO_HOT, "temperature", "decimal_above_max_value").error,
            bad("Missing required parameter: 'messages'.", "messages", "missing_required_parameter").error,
            error_of(PromptTooLong(_TOO_LONG)),
        ),
    ),
    401: ("No key, or a wrong one.", (ApiError(401, "Incorrect API key provided.", code="invalid_api_key"),)),
    404: ("A model that is not served here.", (no_such_model("gpt-x"),)),
    408: (
        "The body did not arrive in time.",
        (ApiError(408, "The request body did not arrive within 60 s.", code="body_timeout"),),
    ),
    413: ("The body is too large.", (too_large(16 * 1024 * 1024),)),
    429: ("The queue is full, or the key's own limit is reached.", (error_of(QueueFull("1024 requests wait")),)),
    500: ("A failure of the server.", (error_of(EngineDied("the engine process ended")), unexpected())),
    503: (
        "The model is not loaded yet, or memory is short.",
        (error_of(Starting("loading weights", 0.4)), error_of(NoMemory("the device's memory has been short for 30 s"))),
    ),
    504: ("The deadline has passed.", (error_of(DeadlinePassed("the request's deadline has passed")),)),
}


def ref(kind: type) -> dict[str, str]:
    """Reference to the schema of a model or struct."""
    return {"$ref": REF.format(name=kind.__name__)}


def json_body(kind: type, examples: Mapping[str, Any]) -> dict[str, Any]:
    """Request body, as `openapi_extra`; the values of `examples` are whole bodies."""
    content = {"schema": ref(kind), "examples": {name: {"value": body} for name, body in examples.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def json_reply(example: msgspec.Struct, description: str = "OK") -> dict[str, Any]:
    """Response whose body is a struct like this one."""
    content = {"application/json": {"schema": ref(type(example)), "example": msgspec.to_builtins(example)}}
    return {"description": description, "headers": REQUEST_ID, "content": content}


def error_replies(*statuses: int) -> Responses:
    """Responses of these statuses, with examples as the server makes them."""
    return {status: _error_reply(*_ERRORS[status]) for status in statuses}


def _error_reply(description: str, errors: tuple[ApiError, ...]) -> dict[str, Any]:
    headers = {**REQUEST_ID, **(RETRY_AFTER if "retry-after" in errors[0].headers else {})}
    examples = {error.code or error.type: {"value": msgspec.to_builtins(error.envelope())} for error in errors}
    content = {"application/json": {"schema": ref(ErrorBody), "examples": examples}}
    return {"description": description, "headers": headers, "content": content}
