"""Project metadata: version, contents of the wheel and the source distribution, GitHub workflow and issue form."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from server.model.cpu.library import available_isas
from server.version import version
from tests.live import ROOT

SOURCES = (
    "server",
    "clients",
    "demo",
    "benchmarks",
    "tests/backends",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)
# As in setup.py.
ISAS = {"x86_64": ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2"), "aarch64": ("neon_bf16", "neon")}
BUILD = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"


def test_the_command_prints_the_version() -> None:
    """A bug report starts with this line."""
    ended = subprocess.run([sys.executable, "-m", "server", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"toolwire {version()}\n"


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-workflows", ".github/workflows/test.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
    ],
)
def test_files_for_github_fit_their_schemas(schema: str, path: str) -> None:
    """GitHub ignores a workflow that it cannot read: nothing would be tested, and nothing would fail."""
    tool = Path(sys.executable).parent / "check-jsonschema"
    ended = subprocess.run([tool, "--builtin-schema", schema, ROOT / path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_workflow_runs_every_python_that_the_metadata_promises(metadata: Message) -> None:
    workflow = YAML(typ="safe").load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert [f"Programming Language :: Python :: {number}" for number in tested] == [
        line for line in metadata.get_all("Classifier", []) if re.fullmatch(r".*:: Python :: 3\.\d+", line)
    ]
    assert {"run": "make test"} in workflow["jobs"]["test"]["steps"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist and the wheel; the latter without compiled kernels, which would take longest."""
    tree, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    build(tree, target, {"CC": "false", "CXX": "false"})
    return target


def build(tree: Path, target: Path, environment: dict[str, str]) -> None:
    """Build both in `target`, from a copy of the sources in `tree`."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules", "*.so"))
        else:
            shutil.copy(source, tree / name)
    command = [sys.executable, "-c", BUILD, str(target)]
    ended = subprocess.run(command, cwd=tree, env=os.environ | environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def wheel_files(built: Path) -> set[str]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_two_packages_and_their_metadata(wheel_files: set[str]) -> None:
    """A test double or a benchmark in the wheel would be installed into the user's site-packages."""
    top_level = {name.split("/")[0] for name in wheel_files}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"server", "clients"}


def test_the_wheel_holds_every_module_and_file_that_the_packages_need(wheel_files: set[str]) -> None:
    for package in ("server", "clients"):
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
        assert {name for name in modules if "node_modules" not in name} - wheel_files == set()
        assert f"{package}/py.typed" in wheel_files
    for folder in ("server/demo_model", "server/first_model", "server/checkpoint/templates", "server/api/web/page"):
        files = {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()}
        assert files and files - wheel_files == set()


def test_the_source_distribution_holds_what_compiles_the_kernels(built: Path) -> None:
    """Without a header the extension, which is optional, is silently left out and CPUs compute at half the speed."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {source.relative_to(ROOT).as_posix() for source in (ROOT / "server/model/cpu/cpp").iterdir()}
    assert sources - names == set()
    assert "LICENSE" in names
    assert not [name for name in names if name.startswith("tests/")]


def test_the_metadata_names_licence_version_and_python(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["Version"] == project["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] is not None
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.skipif(not ISAS.get(platform.machine()), reason="no kernels for this architecture")
def test_a_wheel_carries_the_kernels_of_every_set_for_every_python(tmp_path: Path) -> None:
    """A machine without a compiler gets them from the wheel; one that lacks a set would compute with another."""
    (tmp_path / "tree").mkdir()
    build(tmp_path / "tree", tmp_path / "dist", {"REQUIRE_KERNELS": "1"})
    (path,) = (tmp_path / "dist").glob("*.whl")
    assert f"-cp311-abi3-linux_{platform.machine()}" in path.name
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "site")
    names = {file.name for file in (tmp_path / "site/server/model/cpu").glob("*.so")}
    assert names == {f"_{isa}.abi3.so" for isa in ISAS[platform.machine()]}
    script = "from server.model.cpu.library import available_isas as a; print(*a())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert tuple(ended.stdout.split()) == available_isas()
