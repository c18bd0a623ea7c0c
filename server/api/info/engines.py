"""`/v1/engines`: the engines elsewhere that this server uses, and their metrics."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal

import msgspec
from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from server.api.errors import json_response
from server.api.metrics import PREFIX
from server.api.openapi.operations import error_replies, json_reply
from server.backends.remote import EngineState
from server.backends.routing import RoutingBackend


class EngineCard(msgspec.Struct):
    """One engine. `requests` are this server's, `routed` all of them so far; the others are the engine's own figures.

    `cache_use` is the share of its KV blocks that sequences hold, `detail` why it is not used.
    """

    url: str
    kind: str
    state: EngineState
    detail: str
    requests: int
    routed: int
    running: int
    waiting: int
    cache_use: float


class EngineCards(msgspec.Struct):
    """The engines in the order of their addresses in the list."""

    object: Literal["list"]
    data: list[EngineCard]


def engines_router(backend: RoutingBackend) -> APIRouter:
    """Route that shows the engines."""
    router = APIRouter()

    @router.get(
        "/v1/engines",
        operation_id="listEngines",
        summary="Report the engines elsewhere, and what each of them does.",
        responses={200: json_reply(_EXAMPLE), **error_replies(401, 500)},
    )
    @router.head("/v1/engines", include_in_schema=False)
    async def engines() -> Response:
        return json_response(EngineCards("list", [EngineCard(**asdict(one)) for one in backend.engines()]))

    return router


class EngineGauges(Collector):
    """State and load of each engine, and what became of requests."""

    def __init__(self, backend: RoutingBackend) -> None:
        self._backend = backend

    def collect(self) -> Iterable[Metric]:
        """One sample an engine, labelled with its address."""
        up = GaugeMetricFamily(f"{PREFIX}_remote_engine_up", "1 while it takes requests", labels=["engine"])
        requests = GaugeMetricFamily(
            f"{PREFIX}_remote_engine_requests", "Requests of this server there", labels=["engine"]
        )
        cache = GaugeMetricFamily(
            f"{PREFIX}_remote_engine_kv_cache_use", "Share of its KV blocks in use, 0 to 1", labels=["engine"]
        )
        routed = CounterMetricFamily(f"{PREFIX}_remote_engine_routed", "Requests sent there", labels=["engine"])
        for engine in self._backend.engines():
            up.add_metric([engine.url], engine.state == "up")
            requests.add_metric([engine.url], engine.requests)
            cache.add_metric([engine.url], engine.cache_use)
            routed.add_metric([engine.url], engine.routed)
        yield from (up, requests, cache, routed)
        counts = self._backend.counts
        moved = CounterMetricFamily(
            f"{PREFIX}_requests_moved", "Requests that went on at another engine", labels=["progress"]
        )
        for progress in ("begun", "not begun"):
            moved.add_metric([progress], counts.moved[progress])
        yield moved
        tokens = CounterMetricFamily(
            f"{PREFIX}_routed_prompt_tokens", "Prompt tokens, by what the chosen engine held", labels=["held"]
        )
        tokens.add_metric(["yes"], counts.known_tokens)
        tokens.add_metric(["no"], counts.prompt_tokens - counts.known_tokens)
        yield tokens


_EXAMPLE = EngineCards("list", [EngineCard("http://10.0.0.5:8100", "toolwire", "up", "", 3, 120, 3, 0, 0.25)])
