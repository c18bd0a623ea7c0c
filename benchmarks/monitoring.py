"""Check of the shipped Prometheus files and dashboard with a real Prometheus: python -m benchmarks.monitoring

Needs `prometheus` and `promtool` (apt-get install prometheus). promtool checks the configuration and runs the tests of
deploy/prometheus/alerts_test.yml; then Prometheus scrapes a server behind an API key, as configured in
docker-compose.yml, under load; every expression of the dashboard and every alert must give a result. Exits with 1 and
prints the faults otherwise.
"""

import asyncio
import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.crowd import crowd
from tests.live import Live, live_server

ROOT = Path(__file__).parent.parent
FILES = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "toolwire.json"
KEY = "key-of-the-monitoring"
RATE_INTERVAL = "20s"  # Grafana's value of $__rate_interval: four scrapes
TRAFFIC_S = 25.0
TIMEOUT_S = 60.0


def main() -> int:
    """Run all checks and return the exit code."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; apt-get install prometheus", file=sys.stderr)
        return 2
    faults = check_files()
    with live_server("--api-key", KEY) as server, scraping(server) as url:
        report = asyncio.run(crowd(server.url, 8, TRAFFIC_S, seed=1, key=KEY))
        print(f"traffic: {dict(report.ends)}")
        faults += [*report.faults, *check_target(url), *check_dashboard(url), *check_alerts(url)]
    for fault in faults:
        print(f"FAIL  {fault}")
    print("all checks passed" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


def check_files() -> list[str]:
    """Return the faults that promtool finds in the shipped files."""
    faults = []
    commands = [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]]
    # The key is a compose secret, a file that exists in the container only: checked here for syntax, used below.
    commands.append(["check", "config", "--syntax-only", "prometheus.yml"])
    for command in commands:
        ended = subprocess.run(["promtool", *command], capture_output=True, text=True, cwd=FILES, check=False)
        print(f"promtool {' '.join(command)}: {'ok' if ended.returncode == 0 else 'FAIL'}")
        if ended.returncode:
            faults.append(f"promtool {' '.join(command)}: {ended.stdout}{ended.stderr}")
    return faults


@contextmanager
def scraping(server: Live) -> Iterator[str]:
    """Run Prometheus with the shipped configuration, adapted to the server's address and key; yield its URL."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "api_key").write_text(KEY)
        shutil.copy(FILES / "alerts.yml", folder)
        config = (FILES / "prometheus.yml").read_text()
        config = config.replace("/run/secrets/api_key", str(folder / "api_key"))
        config = config.replace("toolwire:8000", server.url.removeprefix("http://"))
        (folder / "prometheus.yml").write_text(config)
        address = f"127.0.0.1:{_free_port()}"
        options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("wb") as log:
            command = ["prometheus", *options, f"--web.listen-address={address}"]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(f"http://{address}/-/ready", process, folder / "log")
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(30)


def check_target(url: str) -> list[str]:
    """Check that the server is scraped with its API key."""
    (target,) = httpx.get(f"{url}/api/v1/targets").json()["data"]["activeTargets"]
    took_ms = target["lastScrapeDuration"] * 1000
    print(f"target {target['scrapePool']}: {target['health']}, scraped in {took_ms:.1f} ms {target['lastError']}")
    return [] if target["health"] == "up" else [f"the target is {target['health']}: {target['lastError']}"]


def check_dashboard(url: str) -> list[str]:
    """Return the expressions of the dashboard that give no result."""
    faults = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            found = query(url, target["expr"].replace("$__rate_interval", RATE_INTERVAL))
            shown = ", ".join(f"{_label(target, one)} {float(one['value'][1]):.4g}" for one in found)
            print(f"{panel['title']}: {shown or 'NOTHING'}")
            if not found or any(math.isnan(float(one["value"][1])) for one in found):
                faults.append(f"{panel['title']}: {target['expr']} gives {found}")
    return faults


def check_alerts(url: str) -> list[str]:
    """Return alerts that cannot be evaluated, that read series which do not exist, or that fire."""
    faults = []
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        (group,) = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"]
        if all(rule["health"] != "unknown" for rule in group["rules"]) or time.monotonic() > deadline_s:
            break
        time.sleep(1)
    for rule in group["rules"]:
        print(f"alert {rule['name']}: {rule['health']}, {rule['state']}")
        if rule["health"] != "ok" or rule["state"] == "firing":
            faults.append(f"alert {rule['name']}: {rule['health']} {rule['state']} {rule.get('lastError', '')}")
        faults += [
            f"alert {rule['name']} reads {name}, which the server does not export"
            for name in sorted(set(re.findall(r"toolwire_\w+", rule["query"])))
            if not query(url, name)
        ]
    return faults


def query(url: str, expression: str) -> list[dict[str, Any]]:
    """Return the result of an instant query."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def _label(target: dict[str, Any], found: dict[str, Any]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: found["metric"].get(match[1], ""), target["legendFormat"])


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"Prometheus does not answer:\n{log.read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
