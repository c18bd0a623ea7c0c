"""What a start that comes to nothing leaves behind: one line, and no process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.live import ROOT

SERVE = (sys.executable, "-m", "server", "serve", "--port", "0")


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A server that keeps its engine's socket in `folder`, by which its engine is found."""
    return subprocess.Popen(
        [*SERVE, *arguments],
        cwd=ROOT,
        # torch makes a folder for its own cache, which stays.
        env={**os.environ, "TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": f"{folder}-torch"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def engines(folder: Path) -> list[psutil.Process]:
    """The engine processes whose socket lies in `folder`."""
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if any(str(folder) in word for word in one.info["cmdline"] or ())]


def end(process: subprocess.Popen[str], folder: Path) -> str:
    """Everything it said; fails if it does not end soon, or anything of it stays."""
    said, _ = process.communicate(timeout=20)
    assert engines(folder) == []
    assert list(folder.iterdir()) == []
    assert "Traceback" not in said
    return said


def wait_for_engine(folder: Path) -> None:
    deadline_s = time.monotonic() + 30
    while not engines(folder):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_no_such_model_is_one_line_and_leaves_no_engine(tmp_path: Path) -> None:
    """The engine imports before anyone knows whether there is a model for it."""
    process = begin(tmp_path, "--model", "/no/such/folder")
    said = end(process, tmp_path)
    assert process.returncode == 2
    assert said.count("\n") == 1 and "/no/such/folder does not exist" in said


def test_a_folder_that_is_no_model_is_one_line_and_leaves_no_engine(tmp_path: Path) -> None:
    model, sockets = tmp_path / "model", tmp_path / "sockets"
    model.mkdir()
    sockets.mkdir()
    process = begin(sockets, "--model", str(model))
    said = end(process, sockets)
    assert process.returncode == 2
    assert said.count("\n") == 1 and str(model) in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("pause_s", [0.0, 0.5, 2.0])
def test_a_start_that_is_broken_off_ends_soon_and_leaves_no_engine(
    tmp_path: Path, number: signal.Signals, pause_s: float
) -> None:
    """While it imports, while it reads, while the engine loads: an engine that stays holds the device's memory."""
    process = begin(tmp_path)
    wait_for_engine(tmp_path)
    time.sleep(pause_s)
    process.send_signal(number)
    end(process, tmp_path)
