"""Starts that fail or are interrupted leave one line and no process; a start that succeeds prints its summary."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from server.checkpoint.locate import BUILT_IN_FOLDER
from tests.live import ROOT, live_server

MORE_INTERRUPTIONS = ((signal.SIGTERM, 0.0), (signal.SIGINT, 0.5), (signal.SIGTERM, 2.0))
SERVE = (sys.executable, "-m", "server", "serve", "--port", "0")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A server that keeps its engine's socket in `folder`, by which its engine is found."""
    return subprocess.Popen(
        [*SERVE, *arguments],
        cwd=ROOT,
        # torch creates a folder for its own cache and leaves it.
        env={**os.environ, "TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": f"{folder}-torch"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def engines(folder: Path) -> list[psutil.Process]:
    """The engine processes whose socket lies in `folder`."""
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if any(str(folder) in argument for argument in one.info["cmdline"] or ())]


def finish(process: subprocess.Popen[str], folder: Path) -> str:
    """Its output; fails if it does not exit soon, or leaves a process or a file behind."""
    output, _ = process.communicate(timeout=20)
    assert engines(folder) == []
    assert list(folder.iterdir()) == []
    assert "Traceback" not in output
    return output


def wait_for_engine(folder: Path) -> None:
    deadline_s = time.monotonic() + 30
    while not engines(folder):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_no_such_model_is_one_line_and_leaves_no_engine(tmp_path: Path) -> None:
    """The engine imports before anyone knows whether there is a model for it."""
    process = start(tmp_path, "--model", "/no/such/folder")
    output = finish(process, tmp_path)
    assert process.returncode == 2
    assert output.count("\n") == 1 and "/no/such/folder does not exist" in output


def test_a_folder_that_is_no_model_is_one_line_and_leaves_no_engine(tmp_path: Path) -> None:
    model, sockets = tmp_path / "model", tmp_path / "sockets"
    model.mkdir()
    sockets.mkdir()
    process = start(sockets, "--model", str(model))
    output = finish(process, sockets)
    assert process.returncode == 2
    assert output.count("\n") == 1 and str(model) in output


@pytest.mark.parametrize(
    ("number", "pause_s"),
    [
        (signal.SIGINT, 0.0),
        (signal.SIGTERM, 0.5),
        (signal.SIGINT, 2.0),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in MORE_INTERRUPTIONS),
    ],
)
def test_an_interrupted_start_exits_soon_and_leaves_no_engine(
    tmp_path: Path, number: signal.Signals, pause_s: float
) -> None:
    """While it imports, while it reads, while the engine loads: an engine that stays holds the device's memory."""
    process = start(tmp_path)
    wait_for_engine(tmp_path)
    time.sleep(pause_s)
    process.send_signal(number)
    finish(process, tmp_path)


@pytest.mark.long  # tests/dialects/test_families.py has it for another note
def test_the_summary_of_a_start_shows_notes_on_the_checkpoint(tmp_path: Path) -> None:
    """What the server ignores of a checkpoint would otherwise show only in its replies."""
    shutil.copytree(BUILT_IN_FOLDER, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"typical_p": 0.9}))
    with live_server("--model", str(tmp_path / "model")) as server:
        summary = server.output()
    assert "Note" in summary and "generation_config.json: not used here: typical_p" in summary
