"""Routes that monitors poll: `/health`, `/ready`, `/metrics`."""

from typing import Literal

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from server.api.errors import ErrorBody, error_of, json_response
from server.api.metrics import CONTENT_TYPE, Metrics
from server.backends.base import Backend
from server.errors import ServeError, Starting


class Health(msgspec.Struct):
    """The API process lives."""

    status: Literal["ok"]


class Ready(msgspec.Struct):
    """The engine answers; its sequences by state."""

    status: Literal["ready"]
    running: int
    waiting: int


class LoadProgress(msgspec.Struct):
    """How far the engine has come with loading, from 0 to 1 within a stage."""

    stage: str
    fraction: float


class NotReady(ErrorBody):
    """The error that a request would get; with the progress while the model is loading."""

    progress: LoadProgress | UnsetType = UNSET


def health_router(backend: Backend, metrics: Metrics) -> APIRouter:
    """Routes that tell whether the server lives, serves, and how it fares."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    @router.head("/", include_in_schema=False)
    @router.get("/health")
    @router.head("/health", include_in_schema=False)
    async def health() -> Response:
        return json_response(Health("ok"))

    @router.get("/ready")
    @router.head("/ready", include_in_schema=False)
    async def ready() -> Response:
        try:
            pulse = await backend.health()
        except ServeError as error:
            return _not_ready(error)
        return json_response(Ready("ready", pulse.running, pulse.waiting))

    @router.get("/metrics")
    @router.head("/metrics", include_in_schema=False)
    async def prometheus_metrics() -> Response:
        try:
            metrics.engine.pulse = await backend.health()
        except ServeError:
            metrics.engine.pulse = None  # reported as `engine_up 0`
        metrics.engine.restarts = getattr(backend, "restarts", 0)
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    return router


def _not_ready(error: ServeError) -> Response:
    refusal = error_of(error)
    progress = LoadProgress(error.stage, error.fraction) if isinstance(error, Starting) else UNSET
    return json_response(NotReady(refusal.envelope().error, progress), 503, refusal.headers)
