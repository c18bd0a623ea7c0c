"""Errors as HTTP statuses and OpenAI's error object: one table, for bodies and for events of a stream."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from server import errors

INVALID = "invalid_request_error"
LONGEST_RETRY_S = 120.0  # beyond it the SDKs give up at once


class ErrorObject(msgspec.Struct):
    """All four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """Envelope of every error, as a body and as an event of a stream."""

    error: ErrorObject


def encode(value: msgspec.Struct) -> bytes:
    """JSON of a struct: UTF-8, without blanks."""
    return _ENCODER.encode(value)


_ENCODER = msgspec.json.Encoder()


def json_response(value: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A struct as the body of a reply."""
    return Response(encode(value), status, headers, "application/json")


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error as sent to clients. `headers` steer their retries; `cause` is the ServeError that it stands for."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cause: errors.ServeError | None = None

    def envelope(self) -> ErrorBody:
        """Body of a reply, or data of a stream's event."""
        return ErrorBody(ErrorObject(self.message, self.type, self.param, self.code))

    def body(self) -> bytes:
        """JSON of the envelope."""
        return encode(self.envelope())


# The reply of a surface whose errors are not OpenAI's, from the error and the request's id.
Envelope = Callable[[ApiError, str], Response]


def error_response(error: ApiError, scope: Scope) -> Response:
    """A reply with the error's status and headers, in the envelope of the surface that the request is for."""
    state = scope.get("state", {})
    envelope: Envelope | None = state.get("envelope")
    if envelope is not None:
        return envelope(error, state["request_id"])
    return json_response(error.envelope(), error.status, error.headers)


class RequestRefused(Exception):
    """A request refused by the API itself, with the error that is sent."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class _Row:
    status: int
    type: str = INVALID
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


# The SDK must not retry what fails the same way each time.
_DO_NOT_RETRY = {"x-should-retry": "false"}

_TABLE: Mapping[type[errors.ServeError], _Row] = {
    errors.BadRequest: _Row(400),
    errors.PromptTooLong: _Row(400, code="context_length_exceeded", param="messages"),
    errors.BadSchema: _Row(400, code="invalid_function_parameters"),
    errors.ConstraintFailed: _Row(400, code="invalid_function_parameters"),
    errors.Unsupported: _Row(400, code="unsupported_value"),
    errors.UnknownModel: _Row(404, code="model_not_found", param="model"),
    errors.Rejected: _Row(400),
    errors.QueueFull: _Row(429, "requests", "rate_limit_exceeded"),
    errors.NoMemory: _Row(503, "server_error", "no_memory"),
    errors.Starting: _Row(503, "server_error", "model_loading"),
    errors.ShuttingDown: _Row(503, "server_error", "shutting_down"),
    errors.Busy: _Row(503, "server_error", "overloaded"),
    errors.DeadlinePassed: _Row(504, "server_error", "request_timeout", headers=_DO_NOT_RETRY),
    errors.RequestFailed: _Row(500, "server_error", "request_failed", headers=_DO_NOT_RETRY),
    errors.EngineDied: _Row(500, "server_error", "engine_died"),
    errors.Broken: _Row(500, "server_error", headers=_DO_NOT_RETRY),
    errors.ServeError: _Row(500, "server_error"),
}


def error_of(error: errors.ServeError) -> ApiError:
    """The table's entry for this class of error, with the param, code and wait that the error itself names."""
    row = next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
    headers = dict(row.headers)
    if isinstance(error, errors.Busy):
        wait_s = min(LONGEST_RETRY_S, max(1.0, error.retry_after_s))
        headers["retry-after"] = str(round(wait_s))
    param, code = error.param or row.param, error.code or row.code
    return ApiError(row.status, str(error), row.type, param, code, headers, error)


def unexpected() -> ApiError:
    """A 500 for an unhandled exception; the log has the traceback."""
    text = "The server had an error while processing your request. The server's log tells more under the request id."
    return ApiError(500, text, "server_error", code="internal_error", headers=_DO_NOT_RETRY)


def not_found(method: str, path: str, served: Sequence[str]) -> ApiError:
    """A 404 for a URL that does not exist; `served` are the method and path of each route.

    SDKs show a 404 as a missing model, so that the message is all that leads to the base URL.
    """
    steps = _steps(path)
    num_shared = {route: _num_shared_at_end(steps, _steps(route)) for route in served}
    hint = ""
    if best := max(num_shared.values(), default=0):
        alike = [route for route in served if num_shared[route] == best]
        meant = min(alike, key=lambda route: (not route.startswith(f"{method} "), len(_steps(route))))
        base = "Anthropic's clients add /v1 to the base URL" if "/messages" in meant else "The base URL ends with /v1"
        hint = f" Did you mean {meant}? {base}."
    return ApiError(404, f"Invalid URL ({method} {path}).{hint} Served here: {', '.join(served)}.", code="unknown_url")


def _steps(path: str) -> list[str]:
    return [step.lower() for step in path.split("/") if step]


def _num_shared_at_end(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda steps: steps[0] == steps[1], pairs))


def not_allowed(method: str, path: str, served: Sequence[str]) -> ApiError:
    """A 405 for a method that the URL does not have; `served` as in `not_found`."""
    text = f"Not allowed to {method} on {path}."
    if path == "/":
        text += " The path of the endpoint is missing: the base URL of clients ends with /v1."
    return ApiError(405, f"{text} Served here: {', '.join(served)}.", code="method_not_allowed")


def no_such_model(name: str) -> ApiError:
    """A 404 for a `model` that is not served here."""
    text = f"The model `{name}` does not exist or you do not have access to it."
    return ApiError(404, text, code="model_not_found")


def not_json(detail: str) -> ApiError:
    """A 400 for a body that cannot be parsed."""
    text = (
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
        f"library correctly. The server expects a JSON payload: {detail})"
    )
    return ApiError(400, text)


def too_large(limit: int) -> ApiError:
    """A 413 for a body beyond `limit` bytes."""
    text = f"The request body is larger than {limit} bytes, the most that this server takes (--max-body-bytes)."
    return ApiError(413, text, code="request_too_large")
