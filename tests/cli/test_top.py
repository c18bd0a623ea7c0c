"""`toolwire top`: rates and quantiles from metrics text, and a run against a real server."""

import math
import re
import subprocess
import sys

import pytest
from rich.console import Console

from server.cli.top import BAR_WIDTH, Sample, bar, draw, quantile, read_metrics
from tests.live import ROOT, Live

METRICS = """\
# HELP toolwire_requests Requests by outcome
# TYPE toolwire_requests counter
toolwire_requests_total{outcome="200",path="/v1/chat/completions"} 5.0
toolwire_requests_total{outcome="429",path="/v1/chat/completions"} 2.0
# HELP toolwire_time_to_first_token_seconds From the request to the first event
# TYPE toolwire_time_to_first_token_seconds histogram
toolwire_time_to_first_token_seconds_bucket{le="0.1"} 8.0
toolwire_time_to_first_token_seconds_bucket{le="1.0"} 10.0
toolwire_time_to_first_token_seconds_bucket{le="+Inf"} 10.0
toolwire_time_to_first_token_seconds_count 10.0
toolwire_time_to_first_token_seconds_sum 1.5
# HELP toolwire_engine_up 1 while the engine answers
# TYPE toolwire_engine_up gauge
toolwire_engine_up 1.0
# EOF
"""
MEMORY = {
    "level": "tight",
    "devices": [{"name": "host", "used": 3 << 30, "total": 4 << 30, "utilisation": None, "temperature_c": None}],
    "events": [[0.0, "level tight"]],
}


def rendered(*history: Sample) -> str:
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(draw("http://x", history))
    return capture.get()


def test_metrics_are_summed_over_labels() -> None:
    values, buckets = read_metrics(METRICS)
    assert values["toolwire_requests_total"] == 7
    assert buckets["toolwire_time_to_first_token_seconds"] == {0.1: 8, 1.0: 10, math.inf: 10}


@pytest.mark.parametrize(("share", "edge"), [(0.5, 0.1), (0.8, 0.1), (0.95, 1.0), (1.0, 1.0)])
def test_quantiles_come_from_cumulative_buckets(share: float, edge: float) -> None:
    assert quantile({0.1: 8, 1.0: 10, math.inf: 10}, share) == edge


def test_there_is_no_quantile_of_nothing() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({0.1: 0, math.inf: 0}, 0.5) is None


@pytest.mark.parametrize(("used", "total", "cached"), [(0, 0, 0), (5, 10, 5), (10, 10, 0), (11, 10, 3), (1, 1000, 1)])
def test_every_bar_has_the_same_width(used: int, total: int, cached: int) -> None:
    """A server that reports no blocks yet, or more than all, must not break the layout."""
    assert len(bar(used, total, cached).plain) == BAR_WIDTH


def test_rates_are_differences_over_time() -> None:
    values, buckets = read_metrics(METRICS)
    older = Sample(10.0, {**values, "toolwire_engine_output_tokens_total": 100}, buckets, MEMORY)
    newer = Sample(12.0, {**values, "toolwire_engine_output_tokens_total": 500}, buckets, MEMORY)
    shown = rendered(older, newer)
    assert "200 tok/s" in shown
    assert "3.0 GiB of 4.0 GiB" in shown
    assert "level tight" in shown


def test_a_restarted_engine_gives_no_negative_rate() -> None:
    values, buckets = read_metrics(METRICS)
    older = Sample(10.0, {**values, "toolwire_engine_output_tokens_total": 500}, buckets, {})
    newer = Sample(12.0, {**values, "toolwire_engine_output_tokens_total": 10}, buckets, {})
    shown = rendered(older, newer)
    assert "tok/s" in shown and not re.search(r"-\d", shown)


def test_it_renders_a_real_server(live: Live) -> None:
    live.client().chat.completions.create(model="toolwire-demo", messages=[{"role": "user", "content": "Hello!"}])
    command = [sys.executable, "-m", "server", "top", "--once", "--url", live.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    for word in ("ready", "KV cache", "first token", "output"):
        assert word in ended.stdout


def test_no_server_is_one_line() -> None:
    command = [sys.executable, "-m", "server", "top", "--url", "http://127.0.0.1:9"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
