"""The engine's process, its folder and its environment."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from server.backends.engine_process import EngineProcess
from server.backends.socket_folder import SocketFolder
from server.errors import CannotStart

OWNER = """
import tempfile, time
from server.backends.socket_folder import SocketFolder
folder = SocketFolder()
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_is_not(temporary: Path) -> None:
    """Each kill -9 of a server left a folder for ever."""
    foreign = temporary / "toolwire-notes"
    foreign.mkdir()
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        own = SocketFolder()
        assert folder.parent == temporary and folder.exists(), "its process lives"
        own.close()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert folder.exists()
        SocketFolder().close()
    assert list(temporary.iterdir()) == [foreign]


def test_an_engine_that_cannot_be_started_leaves_no_folder(temporary: Path) -> None:
    with pytest.raises(CannotStart, match="cannot start the engine process"):
        EngineProcess(("/no such program",))
    assert list(temporary.iterdir()) == []


def test_keys_do_not_reach_the_environment_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine has no use for them, and `ps e` shows them to its user."""
    monkeypatch.setenv("TOOLWIRE_API_KEY", "a secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = f"import os; open({str(tmp_path / 'environment')!r}, 'w').write(str(dict(os.environ)))"
    with EngineProcess((sys.executable, "-c", script, "its arguments")) as child:
        assert child.wait() == 0
    environment = (tmp_path / "environment").read_text(encoding="utf-8")
    assert "secret" not in environment and "TOOLWIRE" not in environment
    assert "'OMP_NUM_THREADS': '1'" in environment
