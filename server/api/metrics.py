"""Prometheus metrics. One registry an app, so that two apps in a process do not share counters."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPEN_METRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics
from prometheus_client.registry import Collector

from server.errors import BadSchema, ConstraintFailed, ServeError
from server.events import CallClosed, Ended
from server.messages import DeviceReading, Pulse
from server.service import ChoiceEvent, Generation, Outcome, RequestObserver, TokenUsage
from server.version import version

PREFIX = "toolwire"
LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STEP_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 5)
LEVELS = ("calm", "tight", "critical")
CONTENT_TYPE = OPEN_METRICS
NAMES_AS_THEY_ARE = "allow-utf-8"  # else colons would become underscores


class PulseGauges(Collector):
    """Counts of the engine, from its last heartbeat."""

    def __init__(self) -> None:
        self.pulse: Pulse | None = None
        self.restarts = 0

    def collect(self) -> Iterable[Metric]:
        """All metrics of the engine; without a heartbeat only its restarts and `engine_up 0`."""
        yield _counter("engine_restarts", "Times the engine was started again", self.restarts)
        yield _gauge("engine_up", "1 while the engine answers", 0 if self.pulse is None else 1)
        if self.pulse is not None:
            yield from _of_pulse(self.pulse)


def _of_pulse(pulse: Pulse) -> Iterator[Metric]:
    yield _gauge("sequences_running", "Sequences being generated", pulse.running)
    yield _gauge("sequences_waiting", "Sequences waiting for admission", pulse.waiting)
    yield _gauge("kv_blocks_total", "KV blocks", pulse.total_blocks)
    yield _gauge("kv_blocks_used", "KV blocks held by sequences", pulse.used_blocks)
    yield _gauge("kv_blocks_cached", "Free KV blocks whose content may be reused", pulse.cached_blocks)
    yield _counter("engine_steps", "Steps computed", pulse.steps)
    yield _counter("engine_prompt_tokens", "Prompt tokens computed", pulse.prompt_tokens)
    yield _counter("engine_cached_tokens", "Prompt tokens found in the prefix cache", pulse.cached_tokens)
    yield _counter("engine_output_tokens", "Tokens generated", pulse.output_tokens)
    yield _counter("engine_forced_tokens", "Tokens that a grammar determined", pulse.forced_tokens)
    yield _counter("engine_drafted_tokens", "Tokens drafted", pulse.drafted_tokens)
    yield _counter("engine_accepted_tokens", "Drafted tokens accepted", pulse.accepted_tokens)
    yield _counter("engine_preemptions", "Sequences preempted for lack of KV blocks", pulse.preemptions)
    yield from _of_gateways(pulse)
    yield _gauge("engine_hung_grammars", "Threads compiling refused grammars", pulse.hung_grammars)
    if pulse.memory is not None:
        yield _gauge("memory_level", "0 calm, 1 tight, 2 critical", LEVELS.index(pulse.memory.level))
        yield _gauge("memory_kv_bytes", "Bytes of the KV cache", pulse.memory.kv_bytes)
        yield _gauge("memory_allocated_bytes", "Bytes allocated on the device", pulse.memory.allocated_bytes)
        yield _counter("memory_ooms", "Times the device ran out of memory", pulse.memory.ooms)
        yield _gauge("memory_reading_age_seconds", "Time since the device was read", pulse.memory.reading_age_s)
        yield _gauge("memory_allowed_blocks", "KV blocks that memory allows now", pulse.memory.allowed_blocks)
        yield from _of_devices(pulse.memory.devices)


def _of_gateways(pulse: Pulse) -> Iterator[Metric]:
    """The figures by which gateways of the Gateway API Inference Extension choose a server, as they are named there."""
    use = pulse.used_blocks / pulse.total_blocks if pulse.total_blocks else 0.0
    yield GaugeMetricFamily("vllm:num_requests_running", "Sequences being generated", pulse.running)
    yield GaugeMetricFamily("vllm:num_requests_waiting", "Sequences waiting for admission", pulse.waiting)
    yield GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1", use)
    if pulse.num_adapters:  # all of them can run at once
        lora = GaugeMetricFamily(
            "vllm:lora_requests_info", "Adapters in use; the value is the time of this report",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )  # fmt: skip
        names = (",".join(pulse.running_adapters), ",".join(pulse.waiting_adapters))
        lora.add_metric([str(pulse.num_adapters), *names], time.time())
        yield lora


def _of_devices(devices: tuple[DeviceReading, ...]) -> Iterator[Metric]:
    figures: dict[str, tuple[str, Callable[[DeviceReading], float | None]]] = {
        "device_total_bytes": ("Memory of the device", lambda device: device.total),
        "device_free_bytes": ("Free memory of the device", lambda device: device.free),
        "device_own_bytes": ("Memory held by the engine", lambda device: device.own),
        "device_utilisation": ("Share of time that the device computes, 0 to 1", lambda device: device.utilisation),
        "device_temperature_celsius": ("Temperature of the device", lambda device: device.temperature_c),
        "device_healthy": ("1 while the device reports no fault", lambda device: int(device.healthy)),
    }
    for name, (text, figure) in figures.items():
        metric = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["device", "name", "uuid"])
        for index, device in enumerate(devices):
            if (value := figure(device)) is not None:
                metric.add_metric([str(index), device.name, device.uuid], value)
        yield metric


class Metrics:
    """Counters of the API, and the gauges of the engine behind it."""

    def __init__(self, dialect: str) -> None:
        self.registry = CollectorRegistry()
        self.engine = PulseGauges()
        self.registry.register(self.engine)
        self._dialect = dialect
        name, registry = f"{PREFIX}_", self.registry
        self._requests = Counter(f"{name}requests", "Requests by outcome", ["path", "outcome"], registry=registry)
        self._first = Histogram(
            f"{name}time_to_first_token_seconds", "From the request to the first event",
            buckets=LATENCY_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._between = Histogram(
            f"{name}inter_token_seconds", "Between two steps of a reply", buckets=STEP_BUCKETS_S, registry=registry
        )
        self._whole = Histogram(
            f"{name}request_seconds", "From the request to the end of its reply",
            buckets=LATENCY_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._tokens = Counter(f"{name}tokens", "Tokens of finished requests", ["kind"], registry=registry)
        self._calls = Counter(f"{name}tool_calls", "Calls returned", ["dialect", "flag"], registry=registry)
        self._missed_tool_calls = Counter(
            f"{name}missed_tool_calls",
            "Replies without a call whose reasoning named a tool, or that are blank",
            ["dialect", "reply"],
            registry=registry,
        )
        self._grammars = Counter(
            f"{name}grammars",
            "Grammars of replies: held (enforced), or refused as unusable",
            ["dialect", "outcome"],
            registry=registry,
        )
        self._background = Counter(
            f"{name}background_responses", "Background responses that have ended", ["status"], registry=registry
        )
        build = Info(f"{name}build", "Version and tool dialect of this server", registry=registry)
        build.info({"version": version(), "dialect": dialect})
        self._open = Gauge(f"{name}requests_open", "Requests being answered", registry=registry)

    def observe(self) -> "RequestMetrics":
        """An observer of one request."""
        return RequestMetrics(self)

    def count_request(self, path: str, outcome: str) -> None:
        """Count a request that has ended; `path` is a route's."""
        self._requests.labels(path, outcome).inc()

    def count_background(self, status: str) -> None:
        """Count a background response that has ended."""
        self._background.labels(status).inc()

    def render(self) -> bytes:
        """The metrics as OpenMetrics text."""
        text: bytes = generate_open_metrics(self.registry, NAMES_AS_THEY_ARE)  # type: ignore[no-untyped-call]
        return text

    def _count_calls(self, events: Iterable[ChoiceEvent]) -> None:
        for one in events:
            match one.parsed.event:
                case CallClosed(flags=flags):
                    for flag in flags or ("sound",):
                        self._calls.labels(self._dialect, flag).inc()
                case Ended(uncalled=missed) if missed is not None:
                    self._missed_tool_calls.labels(self._dialect, "blank" if missed.blank else "text").inc()

    def _count_grammar(self, outcome: str) -> None:
        self._grammars.labels(self._dialect, outcome).inc()

    def _count_tokens(self, usage: TokenUsage) -> None:
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("cached").inc(usage.cached_tokens)
        self._tokens.labels("completion").inc(usage.completion_tokens)
        self._tokens.labels("reasoning").inc(usage.reasoning_tokens)


class RequestMetrics(RequestObserver):
    """One request's times and counts."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started_s = 0.0
        self._last_s: float | None = None
        self._generation: Generation | None = None

    def started(self) -> None:
        """Count it as open."""
        self._started_s = time.perf_counter()
        self._metrics._open.inc()

    def refused(self, error: BaseException) -> None:
        """Count a constraint that could not be used."""
        self._metrics._open.dec()
        if isinstance(error, ConstraintFailed | BadSchema):
            self._metrics._count_grammar("refused")

    def admitted(self, generation: Generation) -> None:
        """Count a constraint that holds the reply."""
        self._generation = generation
        if generation.prepared.generates[0].constraint is not None:
            self._metrics._count_grammar("held")

    def received(self, events: Sequence[ChoiceEvent]) -> None:
        """Observe the time to the first token, or since the last one."""
        now_s = time.perf_counter()
        if self._last_s is None:
            self._metrics._first.observe(now_s - self._started_s)
        else:
            self._metrics._between.observe(now_s - self._last_s)
        self._last_s = now_s
        self._metrics._count_calls(events)

    def finished(self, outcome: Outcome, error: ServeError | None) -> None:
        """Count its tokens and its time."""
        assert self._generation is not None, "a request is admitted before it is finished"
        self._metrics._open.dec()
        self._metrics._whole.observe(time.perf_counter() - self._started_s)
        self._metrics._count_tokens(self._generation.usage)


def _gauge(name: str, text: str, value: float) -> Metric:
    metric = GaugeMetricFamily(f"{PREFIX}_{name}", text)
    metric.add_metric([], value)
    return metric


def _counter(name: str, text: str, value: float) -> Metric:
    metric = CounterMetricFamily(f"{PREFIX}_{name}", text)
    metric.add_metric([], value)
    return metric
