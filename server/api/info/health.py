"""Routes that monitors poll: `/health`, `/ready`, `/metrics`."""

from collections.abc import Callable
from typing import Literal

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from server.api.errors import ErrorBody, error_of, json_response
from server.api.metrics import CONTENT_TYPE, Metrics
from server.api.openapi.operations import RETRY_AFTER, error_replies, json_reply
from server.backends.base import Backend
from server.errors import ServeError, Starting
from server.store.response_store import StoreState


class Health(msgspec.Struct):
    """The API process lives."""

    status: Literal["ok"]


class Readiness(msgspec.Struct):
    """The engine answers; its sequences by state, and whether responses are kept (none: they are not to be)."""

    status: Literal["ready"]
    running: int
    waiting: int
    response_store: StoreState = "none"


class LoadProgress(msgspec.Struct):
    """How far the engine has come with loading, from 0 to 1 within a stage."""

    stage: str
    fraction: float


class NotReady(ErrorBody):
    """The error that a request would get; with the progress while the model is loading."""

    progress: LoadProgress | UnsetType = UNSET


def health_router(backend: Backend, metrics: Metrics, store_state: Callable[[], StoreState]) -> APIRouter:
    """Routes that report liveness, readiness and metrics."""
    router = APIRouter()

    @router.get(
        "/health",
        operation_id="getHealth",
        summary="The API process lives; says nothing of the engine.",
        responses={200: json_reply(Health("ok")), **error_replies(500)},
    )
    @router.head("/health", include_in_schema=False)
    async def health() -> Response:
        return json_response(Health("ok"))

    @router.get(
        "/ready",
        operation_id="getReadiness",
        summary="The model is loaded and the engine answers.",
        responses={200: json_reply(Readiness("ready", 0, 0)), 503: _NOT_READY, **error_replies(500)},
    )
    @router.head("/ready", include_in_schema=False)
    async def ready() -> Response:
        try:
            pulse = await backend.health()
        except ServeError as error:
            return json_response(_not_ready(error), 503, error_of(error).headers)
        return json_response(Readiness("ready", pulse.running, pulse.waiting, store_state()))

    @router.get(
        "/metrics",
        operation_id="getMetrics",
        summary="Prometheus metrics.",
        responses={200: _METRICS, **error_replies(401, 500)},
    )
    @router.head("/metrics", include_in_schema=False)
    async def prometheus_metrics() -> Response:
        try:
            metrics.engine.pulse = await backend.health()
        except ServeError:
            metrics.engine.pulse = None  # reported as `engine_up 0`
        metrics.engine.restarts = getattr(backend, "restarts", 0)
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    return router


def _not_ready(error: ServeError) -> NotReady:
    progress = LoadProgress(error.stage, error.fraction) if isinstance(error, Starting) else UNSET
    return NotReady(error_of(error).envelope().error, progress)


_NOT_READY = json_reply(
    _not_ready(Starting("loading weights", 0.4)),
    "The engine does not answer; while the model is loading, with the progress.",
)
_NOT_READY["headers"] |= RETRY_AFTER
_METRICS = {
    "description": "OpenMetrics text.",
    "content": {
        "application/openmetrics-text": {
            "schema": {"type": "string"},
            "example": "# TYPE toolwire_requests counter\n"
            'toolwire_requests_total{path="/v1/chat/completions",outcome="200"} 1.0\n# EOF\n',
        }
    },
}
