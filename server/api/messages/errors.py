"""Errors in Anthropic's envelope, with its types and statuses, as bodies and as events of a stream."""

import msgspec
from msgspec import UNSET
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from server.api.errors import ApiError, Envelope, encode, json_response
from server.api.messages.schemas import NO_THREADS
from server.api.messages.wire import AnthropicError, AnthropicErrorBody, AnthropicErrorDetails
from server.errors import Busy, PromptTooLong

PATH = "/v1/messages"
MODELS_PATH = "/v1/models"
VERSION_HEADER = "anthropic-version"  # every client of Anthropic's sends it; any version is served alike
OVERLOADED = 529
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def envelope_of(scope: Scope) -> Envelope | None:
    """The envelope of a request's errors: Anthropic's on its paths, and on `/v1/models` for its clients."""
    path: str = scope["path"]
    for_messages = path == PATH or path.startswith(f"{PATH}/")
    for_models = path.startswith(MODELS_PATH) and VERSION_HEADER in Headers(scope=scope)
    return anthropic_response if for_messages or for_models else None


def anthropic_response(error: ApiError, request_id: str) -> Response:
    """A reply with the error's envelope, status and headers."""
    return json_response(anthropic_error(error, request_id), status_of(error), error.headers)


def anthropic_error(error: ApiError, request_id: str) -> AnthropicErrorBody:
    """The envelope. Programs know by the words of a prompt too long that they must shorten the conversation."""
    status = status_of(error)
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    text, cause = error.message, error.cause
    if isinstance(cause, PromptTooLong):
        counts = f"{cause.num_tokens} tokens > {cause.limit} maximum"
        text = f"prompt is too long: {counts if cause.num_tokens else text}"
    elif error.param and error.param not in text:  # the envelope has no field for it
        text = f"{error.param}: {text}"
    details = AnthropicErrorDetails(NO_THREADS, ["thread"]) if error.code == NO_THREADS else UNSET
    return AnthropicErrorBody(AnthropicError(kind, text, details), request_id)


def status_of(error: ApiError) -> int:
    """The HTTP status: 529 for whatever a retry may serve."""
    return OVERLOADED if isinstance(error.cause, Busy) else error.status


class MessageFrames:
    """Events named after their type; an error is the last, nothing comes behind it."""

    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    end = b""

    def frame(self, event: msgspec.Struct) -> bytes:
        """One named event, of a struct with a tag."""
        name = str(event.__struct_config__.tag).encode()
        return b"event: " + name + b"\ndata: " + encode(event) + b"\n\n"

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The envelope as an event."""
        return self.frame(anthropic_error(error, request_id))
