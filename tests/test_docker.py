"""Dockerfile, compose file and what they provision, by linters and schemas; deploy/smoke-test.sh runs the image."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from ruamel.yaml import YAML

from server.api.metrics import Metrics
from server.messages import MemoryReport, Pulse
from server.settings import ApiSettings, resolve
from tests.live import ROOT

BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
FINAL_STAGE = DOCKERFILE[DOCKERFILE.index(" AS serve") :]
METRIC = re.compile(r"toolwire_[a-z_]+")
SUFFIXES = ("", "_total", "_bucket")


def load(path: str) -> Any:
    return YAML(typ="safe").load((ROOT / path).read_text(encoding="utf-8"))


def run(*command: str) -> None:
    ended = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run("hadolint", "Dockerfile")


def test_the_compose_file_fits_the_compose_specification() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_the_image_is_not_root_and_is_asked_for_its_health() -> None:
    assert re.search(r"^USER 10001:10001$", FINAL_STAGE, re.MULTILINE)
    assert "HEALTHCHECK" in FINAL_STAGE
    assert "curl" not in FINAL_STAGE


def test_the_server_is_process_one() -> None:
    """In shell form `sh` would be process 1 and swallow SIGTERM: every stop would be a kill."""
    assert 'ENTRYPOINT ["toolwire"]' in FINAL_STAGE
    assert 'CMD ["serve"]' in FINAL_STAGE


def test_the_final_stage_installs_nothing() -> None:
    assert not re.search(r"\b(apt-get|pip|gcc|make)\b", FINAL_STAGE)


def test_only_what_the_image_is_made_of_is_sent_to_the_builder() -> None:
    """An allowlist: a checkpoint or a key that lies in the folder must never end up in a layer."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE))
    sources = {source for group in copied for source in group.split()}
    assert sources == {line[1:] for line in lines if line.startswith("!")}


def test_profiles_and_their_promises() -> None:
    services = load("docker-compose.yml")["services"]
    assert services["cpu"]["profiles"] == ["cpu"]
    assert services["cpu"]["environment"]["TOOLWIRE_MODEL"].endswith(":-built-in}")
    devices = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    for name in ("cpu", "gpu"):
        assert services[name]["read_only"] is True
        assert services[name]["ports"] == ["${TOOLWIRE_PUBLISH:-127.0.0.1:8000}:8000"]
        targets = {volume.rsplit(":/", 1)[1] for volume in services[name]["volumes"]}
        assert targets == {"models:ro", "cache"}


def test_compose_gives_the_server_longer_than_it_takes_to_drain() -> None:
    """With Docker's 10 s default, running replies would be killed in the middle of the drain."""
    grace_s = int(load("docker-compose.yml")["services"]["cpu"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > ApiSettings().drain_timeout_s


def test_environment_names_in_image_and_compose_are_options() -> None:
    """A variable that no option reads is a start-up error, found by the first user."""
    services = load("docker-compose.yml")["services"]
    given = dict(re.findall(r"(TOOLWIRE_[A-Z_]+)=(\S+)", FINAL_STAGE))
    for name in ("cpu", "gpu"):
        environment = {key: "1" for key in services[name]["environment"] if key.startswith("TOOLWIRE_")}
        resolve({}, {**environment, "TOOLWIRE_DEVICE": "cpu", **given}, {})


@pytest.mark.parametrize("path", ["deploy/grafana/dashboards/toolwire.json", "deploy/prometheus/alerts.yml"])
def test_dashboard_and_alerts_name_metrics_that_exist(path: str) -> None:
    """A renamed metric leaves a panel empty and an alert silent, and nobody notices."""
    metrics = Metrics("hermes")
    metrics.engine.pulse = Pulse(0.0, 0, 0, 1, 0, 0, memory=MemoryReport())
    known = {f"{family.name}{suffix}" for family in metrics.registry.collect() for suffix in SUFFIXES}
    named = set(METRIC.findall((ROOT / path).read_text(encoding="utf-8")))
    assert len(named) >= 8
    assert named - known == set()


def test_the_dashboard_uses_the_provisioned_datasource() -> None:
    (source,) = load("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    panels = json.loads((ROOT / "deploy/grafana/dashboards/toolwire.json").read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}


def test_the_dashboard_reads_back_through_grafanas_own_types() -> None:
    """Grafana passes over a key that it does not know: a misspelt one leaves a panel without its unit or legend."""
    register_default_plugins()
    written = json.loads((ROOT / "deploy/grafana/dashboards/toolwire.json").read_text())
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(written)))
    assert list(lost(written, read)) == []


def lost(written: Any, read: Any, path: str = "") -> Iterator[str]:
    """Paths of what did not come back as it was written."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from lost(value, read.get(key), f"{path}/{key}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for index, value in enumerate(written):
            yield from lost(value, read[index], f"{path}/{index}")
    elif written != read:
        yield path


def test_every_alert_is_played() -> None:
    """deploy/prometheus/alerts_test.yml says when each fires; `python -m benchmarks.monitoring` plays it."""
    (group,) = load("deploy/prometheus/alerts.yml")["groups"]
    played = load("deploy/prometheus/alerts_test.yml")["tests"]
    fired = {one["alertname"] for test in played for one in test["alert_rule_test"] if one.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in group["rules"]}


def test_the_scripts_are_sound_shell() -> None:
    for script in sorted((ROOT / "docker").glob("*.sh")):
        subprocess.run(["bash", "-n", str(script)], check=True)
