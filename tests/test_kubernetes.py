"""Manifests of deploy/kubernetes: what they name exists, in them and in the program."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deploy.ray.options import Options
from server.api.responses.reasoning_seal import KEY_FILE
from server.backends.engine_list import DNS, address_of
from server.cli.start import refuse_open_engine
from server.settings import ENV_PREFIX, GROUPS, resolve
from tests.live import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OPTIONS = {field.name for group in GROUPS.values() for field in dataclasses.fields(group)}
PROBES = {"startupProbe", "readinessProbe", "livenessProbe"}


def manifests(name: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all((FOLDER / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """The objects of toolwire.yaml by kind and name."""
    return {(one["kind"], one["metadata"]["name"]): one for one in manifests("toolwire.yaml")}


def pod_of(objects: dict[tuple[str, str], dict[str, Any]], name: str) -> dict[str, Any]:
    pod: dict[str, Any] = objects["Deployment", name]["spec"]["template"]["spec"]
    return pod


def environment_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_every_selector_selects_the_pods_that_it_is_meant_for(objects: dict[tuple[str, str], Any]) -> None:
    """A label that differs by a letter gives a Service without endpoints, and no error."""
    labels = {name: one["spec"]["template"]["metadata"]["labels"] for (kind, name), one in objects.items()
              if kind == "Deployment"}  # fmt: skip
    assert labels["toolwire-engine"] != labels["toolwire-api"]
    for name, expected in labels.items():
        assert objects["Deployment", name]["spec"]["selector"]["matchLabels"] == expected
    assert objects["Service", "toolwire-engines"]["spec"]["selector"] == labels["toolwire-engine"]
    assert objects["Service", "toolwire"]["spec"]["selector"] == labels["toolwire-api"]
    policy = objects["NetworkPolicy", "toolwire-engines"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels["toolwire-engine"]
    assert policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"] == labels["toolwire-api"]


@pytest.mark.parametrize(
    ("deployment", "service"), [("toolwire-engine", "toolwire-engines"), ("toolwire-api", "toolwire")]
)
def test_ports_and_probes_are_those_of_the_container(
    objects: dict[tuple[str, str], Any], deployment: str, service: str
) -> None:
    (container,) = pod_of(objects, deployment)["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    (target,) = objects["Service", service]["spec"]["ports"]
    assert target["targetPort"] in ports
    probes = [container[name]["httpGet"] for name in PROBES & set(container)]
    assert len(probes) >= 2
    assert {(probe["path"], probe["port"]) for probe in probes} == {
        ("/ready", target["name"]),
        ("/health", target["name"]),
    }
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {one["name"] for one in pod_of(objects, deployment)["volumes"]}


@pytest.mark.parametrize("deployment", ["toolwire-engine", "toolwire-api"])
def test_options_exist_and_replies_may_end(objects: dict[tuple[str, str], Any], deployment: str) -> None:
    """A pod with an option that does not exist restarts for ever."""
    pod = pod_of(objects, deployment)
    given = {name.removeprefix(ENV_PREFIX).lower(): value for name, value in environment_of(pod).items()}
    assert set(given) <= OPTIONS
    settings = resolve({}, {f"{ENV_PREFIX}{name.upper()}": value for name, value in given.items()
                            if isinstance(value, str)}, {}).settings  # fmt: skip
    assert settings.api.drain_timeout_s < pod["terminationGracePeriodSeconds"]
    (container,) = pod["containers"]
    command, *arguments = container["args"]
    shown = subprocess.run(
        [sys.executable, "-m", "server", command, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    for option in (one for one in arguments if one.startswith("--")):
        assert re.search(rf"{option}\b", shown.stdout), option


def test_the_api_finds_the_engines_and_both_have_the_same_model_and_key(objects: dict[tuple[str, str], Any]) -> None:
    engine, api = pod_of(objects, "toolwire-engine"), pod_of(objects, "toolwire-api")
    for name in ("TOOLWIRE_MODEL", "TOOLWIRE_ENGINE_KEY"):
        assert environment_of(engine)[name] == environment_of(api)[name]
    listen = engine["containers"][0]["args"][-1]
    host, _, port = listen.rpartition(":")
    refuse_open_engine(host, "a key")
    service = objects["Service", "toolwire-engines"]
    assert service["spec"]["clusterIP"] == "None", "one address of its own would be one engine"
    assert api["containers"][0]["args"][-1] == address_of(f"{DNS}://{service['metadata']['name']}:{port}")
    assert engine["containers"][0]["ports"][0]["containerPort"] == service["spec"]["ports"][0]["port"] == int(port)


def test_secrets_are_those_that_the_first_lines_create(objects: dict[tuple[str, str], Any]) -> None:
    text = (FOLDER / "toolwire.yaml").read_text(encoding="utf-8")
    created = set(re.findall(r"--from-(?:literal|file)=([\w-]+)=", text))
    named = set()
    for name in ("toolwire-engine", "toolwire-api"):
        pod = pod_of(objects, name)
        references = [value["secretKeyRef"] for value in environment_of(pod).values() if isinstance(value, dict)]
        volumes = [one["secret"] for one in pod["volumes"] if "secret" in one]
        items = [item for one in volumes for item in one["items"]]
        assert {one["name"] for one in references} | {one["secretName"] for one in volumes} == {"toolwire"}
        assert all(item["path"] == KEY_FILE for item in items)
        named |= {one["key"] for one in references} | {item["key"] for item in items}
    assert named == created


def test_the_ray_service_runs_the_application_with_options_that_it_has() -> None:
    (service,) = manifests("ray-service.yaml")
    spec = service["spec"]
    (application,) = YAML(typ="safe").load(spec["serveConfigV2"])["applications"]
    module, _, builder = application["import_path"].partition(":")
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert f"def {builder}(options: Options)" in source
    options = Options.model_validate(application["args"])
    resolve(options.api, {}, {})
    cluster = spec["rayClusterConfig"]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    dockerfile = (ROOT / "deploy/ray/Dockerfile").read_text(encoding="utf-8")
    assert pinned and cluster["rayVersion"] == pinned[1] and f"rayproject/ray:{pinned[1]}-py3" in dockerfile
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["maxReplicas"] >= options.max_engines
    pod = workers["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > options.drain_timeout_s
    cpus = float(pod["containers"][0]["resources"]["limits"]["cpu"])
    assert cpus >= options.engine_cpus + options.api_cpus


def test_the_image_of_ray_passes_the_linter() -> None:
    tool = Path(sys.executable).parent / "hadolint"
    ended = subprocess.run([tool, ROOT / "deploy/ray/Dockerfile"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
