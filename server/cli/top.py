"""`toolwire top`: live view of a running server in the terminal, from its `/metrics` and `/v1/memory`; read-only."""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from clients.terminal import printable

BAR_WIDTH = 40
HISTORY = 60  # samples of the throughput curve
CURVE = " ▁▂▃▄▅▆▇█"
TIMEOUT_S = 5.0
LEVELS = {0: ("calm", "green"), 1: ("tight", "yellow"), 2: ("critical", "red")}


@dataclass(frozen=True, slots=True)
class Sample:
    """Metrics and memory report of one moment. `values` sums each metric over its labels; `buckets` are cumulative."""

    time_s: float
    values: Mapping[str, float]
    buckets: Mapping[str, Mapping[float, float]]
    memory: Mapping[str, Any]

    def of(self, name: str) -> float:
        """A metric by its name without the prefix; 0 if the server does not export it."""
        return self.values.get(f"toolwire_{name}", 0.0)


def read_metrics(text: str) -> tuple[dict[str, float], dict[str, dict[float, float]]]:
    """Sums over labels, and the cumulative buckets of every histogram."""
    values: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                of_family = buckets.setdefault(family.name, {})
                edge = float(sample.labels["le"])
                of_family[edge] = of_family.get(edge, 0.0) + sample.value
            else:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values, buckets


def read_sample(url: str, key: str) -> Sample:
    """Query the server; raises OSError (urllib's errors are) where it does not answer."""
    values, buckets = read_metrics(_get(f"{url}/metrics", key).decode())
    try:
        memory = json.loads(_get(f"{url}/v1/memory", key))
    except urllib.error.HTTPError as error:
        if error.code != 503:  # the engine is loading or restarting
            raise
        memory = {}
    return Sample(time.monotonic(), values, buckets, memory)


def draw(url: str, history: Sequence[Sample]) -> Panel:
    """Render the screen from these samples, the newest last."""
    newest = history[-1]
    before = history[max(0, len(history) - 6)]  # rates over the last few samples: a single one flickers
    parts: list[Text | Table] = [
        _throughput(newest, before),
        _curve(history),
        _memory_bars(newest),
        _latencies(newest, history[0]),
        _counts(newest),
    ]
    up = newest.of("engine_up") > 0
    state = Text(" ready " if up else " engine down ", "black on green" if up else "white on red")
    return Panel(Group(state, *parts, *_events(newest)), title=f"toolwire  {url}", border_style="dim")


def _throughput(newest: Sample, before: Sample) -> Table:
    table = Table.grid(padding=(0, 3))
    cells = [
        ("output", f"{_rate('engine_output_tokens_total', newest, before):,.0f} tok/s"),
        ("prompt", f"{_rate('engine_prompt_tokens_total', newest, before):,.0f} tok/s"),
        ("cached", f"{_rate('engine_cached_tokens_total', newest, before):,.0f} tok/s"),
        ("requests", f"{_rate('requests_total', newest, before):,.1f} /s"),
        ("running", f"{newest.of('sequences_running'):,.0f}"),
        ("waiting", f"{newest.of('sequences_waiting'):,.0f}"),
    ]
    table.add_row(*(Text(name, "dim") for name, _ in cells))
    table.add_row(*(Text(value, "bold") for _, value in cells))
    return table


def _curve(history: Sequence[Sample]) -> Text:
    rates = [_rate("engine_output_tokens_total", newer, older) for older, newer in pairwise(history)]
    top = max(rates, default=0.0) or 1.0
    return Text("".join(CURVE[round(rate / top * (len(CURVE) - 1))] for rate in rates), "cyan")


def _memory_bars(newest: Sample) -> Table:
    table = Table.grid(padding=(0, 1))
    total, used = newest.of("kv_blocks_total"), newest.of("kv_blocks_used")
    cached = newest.of("kv_blocks_cached")
    table.add_row("KV cache", bar(used, total, cached), f"{used:,.0f} of {total:,.0f} blocks, {cached:,.0f} reusable")
    for device in newest.memory.get("devices", ()):
        sizes = f"{_size(device['used'])} of {_size(device['total'])}"
        busy = "" if device.get("utilisation") is None else f", {device['utilisation']:.0%} busy"
        warm = "" if device.get("temperature_c") is None else f", {device['temperature_c']:.0f} °C"
        table.add_row(
            Text(printable(str(device["name"]))), bar(device["used"], device["total"]), f"{sizes}{busy}{warm}"
        )
    name, colour = LEVELS.get(int(newest.of("memory_level")), ("?", "red"))
    table.add_row("memory", Text(name, colour), "")
    return table


def _latencies(newest: Sample, first: Sample) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_row(*(Text(title, "dim") for title in ("latency", "p50", "p95")))
    rows = (
        ("first token", "toolwire_time_to_first_token_seconds"),
        ("between steps", "toolwire_inter_token_seconds"),
        ("whole request", "toolwire_request_seconds"),
    )
    for title, name in rows:
        buckets = _grown(newest.buckets.get(name, {}), first.buckets.get(name, {}))
        table.add_row(title, *(_seconds(quantile(buckets, share)) for share in (0.5, 0.95)))
    return table


def _counts(newest: Sample) -> Text:
    names = ("engine_preemptions_total", "engine_restarts_total", "memory_ooms_total", "tool_calls_total")
    return Text(
        "   ".join(f"{name.removesuffix('_total').replace('_', ' ')} {newest.of(name):,.0f}" for name in names), "dim"
    )


def _events(newest: Sample) -> list[Text]:
    events = newest.memory.get("events", ())[-3:]
    return [
        Text(f"{time.strftime('%H:%M:%S', time.localtime(at_s))} {printable(text)}", "yellow") for at_s, text in events
    ]


def bar(used: float, total: float, cached: float = 0.0) -> Text:
    """Used solid, cached shaded, the rest dotted."""
    whole = total or 1.0
    solid = min(BAR_WIDTH, round(used / whole * BAR_WIDTH))
    shaded = min(BAR_WIDTH - solid, round(cached / whole * BAR_WIDTH))
    colour = "red" if used > 0.95 * whole else "yellow" if used > 0.8 * whole else "green"
    return Text.assemble(("█" * solid, colour), ("▒" * shaded, "blue"), ("·" * (BAR_WIDTH - solid - shaded), "dim"))


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The edge below which `share` of the observations lie; None without any. `inf` is beyond the last edge."""
    edges = sorted(buckets)
    if not edges or not buckets[edges[-1]]:
        return None
    return next(edge for edge in edges if buckets[edge] >= share * buckets[edges[-1]])


def _grown(newer: Mapping[float, float], older: Mapping[float, float]) -> dict[float, float]:
    grown = {edge: count - older.get(edge, 0.0) for edge, count in newer.items()}
    return grown if any(grown.values()) else dict(newer)  # no observation since this program began: show all of them


def _rate(name: str, newer: Sample, older: Sample) -> float:
    elapsed_s = newer.time_s - older.time_s
    return max(0.0, newer.of(name) - older.of(name)) / elapsed_s if elapsed_s > 0 else 0.0


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def _get(url: str, key: str) -> bytes:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        body: bytes = reply.read()
        return body


def _watch(console: Console, url: str, key: str, interval_s: float) -> None:
    history: deque[Sample] = deque([read_sample(url, key)], maxlen=HISTORY)
    with Live(draw(url, history), console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            try:
                history.append(read_sample(url, key))
                live.update(draw(url, history), refresh=True)
            except OSError as error:
                live.update(
                    Panel(escape(printable(f"{url} does not answer: {error}")), border_style="red"), refresh=True
                )


def main() -> None:
    """python -m server.cli.top"""
    parser = argparse.ArgumentParser(prog="toolwire top", description="Watch a running server.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--key", default="", help="API key, if the server requires one")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="print one sample and exit")
    chosen = parser.parse_args()
    url, console = chosen.url.rstrip("/").removesuffix("/v1"), Console()
    try:
        if chosen.once:
            console.print(draw(url, [read_sample(url, chosen.key)]))
        else:
            _watch(console, url, chosen.key, chosen.interval)
    except KeyboardInterrupt:
        return
    except urllib.error.HTTPError as error:
        hint = "; give its key with --key" if error.code == 401 else ""
        sys.exit(f"{url} answers {error.code}{hint}")
    except OSError as error:
        sys.exit(printable(f"no server answers at {url} ({error}); start one with: toolwire serve"))


if __name__ == "__main__":
    main()
