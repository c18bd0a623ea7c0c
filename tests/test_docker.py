"""Dockerfile, compose file and what they provision, by linters and schemas; deploy/smoke-test.sh runs the image."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
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
from tests.live import ROOT, Live

BIN = Path(sys.executable).parent
COMMENT = re.compile(r"\s*#")
METRIC = re.compile(r"toolwire_[a-z_]+")
SUFFIXES = ("", "_total", "_bucket")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile, continued lines joined."""

    name: str
    value: str

    @property
    def command(self) -> Any:
        """The words of the exec form; raises ValueError for the shell form."""
        return json.loads(self.value)


def stages() -> list[list[Instruction]]:
    """The Dockerfile's instructions, a list for each FROM."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not COMMENT.match(line)]
    found: list[list[Instruction]] = [[]]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line:
            name, _, value = line.partition(" ")
            if name == "FROM":
                found.append([])
            found[-1].append(Instruction(name, value.strip()))
    return found[1:]


def final(name: str) -> list[Instruction]:
    """The instructions of this name in the stage that is shipped."""
    return [one for one in stages()[-1] if one.name == name]


def load(path: str) -> Any:
    return YAML(typ="safe").load((ROOT / path).read_text(encoding="utf-8"))


def run(*command: str) -> None:
    ended = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run("hadolint", "Dockerfile")


def test_the_compose_file_fits_the_compose_specification() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_the_image_runs_as_a_user_named_by_number() -> None:
    """An orchestrator cannot tell whether a name is root."""
    (user,) = final("USER")
    assert all(int(number) > 0 for number in user.value.split(":"))


def test_the_server_is_process_one() -> None:
    """In shell form `sh` would be process 1 and swallow SIGTERM: every stop would be a kill."""
    (entry,), (command,), (stop,) = final("ENTRYPOINT"), final("CMD"), final("STOPSIGNAL")
    assert [*entry.command, *command.command] == ["toolwire", "serve"]
    assert stop.value == "SIGTERM"


def test_the_health_check_is_green_for_a_server_and_red_for_none(live: Live) -> None:
    (check,) = final("HEALTHCHECK")
    program, *arguments = Instruction("CMD", check.value.partition("CMD ")[2]).command
    assert program == "python"
    codes = []
    for port in (live.url.rpartition(":")[2], "9"):
        environment = {"TOOLWIRE_PORT": port}
        codes.append(subprocess.run([sys.executable, *arguments], env=environment, capture_output=True).returncode)
    assert codes == [0, 1]


def test_the_final_stage_installs_nothing() -> None:
    commands = [part for one in final("RUN") for part in one.value.split("&&")]
    assert {shlex.split(command)[0] for command in commands} == {"groupadd", "useradd", "install"}


def test_only_what_the_image_is_made_of_is_sent_to_the_builder() -> None:
    """An allowlist: a checkpoint or a key in the folder must never be part of a layer."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    copies = [shlex.split(one.value) for stage in stages() for one in stage if one.name == "COPY"]
    sources = {source for words in copies if not words[0].startswith("--from") for source in words[:-1]}
    assert sources == {line[1:] for line in lines if line.startswith("!")}


def test_compose_profiles() -> None:
    services = load("docker-compose.yml")["services"]
    assert services["cpu"]["profiles"] == ["cpu"]
    assert services["cpu"]["environment"]["TOOLWIRE_MODEL"].endswith(":-auto}")
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
    image = dict(pair.split("=", 1) for one in final("ENV") for pair in shlex.split(one.value))
    given = {key: value for key, value in image.items() if key.startswith("TOOLWIRE_")}
    assert given
    for name in ("cpu", "gpu"):
        environment = {key: "1" for key in services[name]["environment"] if key.startswith("TOOLWIRE_")}
        resolve({}, {**environment, "TOOLWIRE_DEVICE": "cpu", **given}, {})


@pytest.mark.parametrize("path", ["deploy/grafana/dashboards/toolwire.json", "deploy/prometheus/alerts.yml"])
def test_dashboard_and_alerts_name_metrics_that_exist(path: str) -> None:
    """A renamed metric leaves a panel empty and an alert silent."""
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


def test_every_alert_is_tested() -> None:
    """deploy/prometheus/alerts_test.yml says when each fires; `python -m benchmarks.monitoring` runs it."""
    (group,) = load("deploy/prometheus/alerts.yml")["groups"]
    tested = load("deploy/prometheus/alerts_test.yml")["tests"]
    fired = {one["alertname"] for test in tested for one in test["alert_rule_test"] if one.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in group["rules"]}


def test_the_scripts_are_sound_shell() -> None:
    scripts = [*(ROOT / "deploy").glob("*.sh"), *(ROOT / "clients" / "curl").glob("*.sh")]
    assert len(scripts) >= 6
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
