"""Starts that fail or are interrupted leave one line and no process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.live import ROOT

MORE_INTERRUPTIONS = ((signal.SIGTERM, 0.0), (signal.SIGINT, 0.5), (signal.SIGTERM, 2.0))
# A process that gets SIGTERM in a finalizer, in the middle of the slow imports.
DISCARDED_SIGNAL = """
import os, signal, sys

class Signalled:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "server.cli.serve":
            Signalled()

sys.meta_path.insert(0, Finder())
"""
SERVE = (sys.executable, "-m", "server", "serve", "--port", "0")


def start(folder: Path, *arguments: str, path: Path | None = None) -> subprocess.Popen[str]:
    """A server that keeps its engine's socket in `folder`, by which its engine is found; `path` is its PYTHONPATH."""
    return subprocess.Popen(
        [*SERVE, *arguments],
        cwd=ROOT,
        # torch creates a folder for its own cache and leaves it.
        env={
            **os.environ,
            "TMPDIR": str(folder),
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}-torch",
            **({"PYTHONPATH": str(path)} if path else {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def engines(folder: Path) -> list[psutil.Process]:
    """The engine processes whose socket lies in `folder`."""
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if any(str(folder) in argument for argument in one.info["cmdline"] or ())]


def finish(process: subprocess.Popen[str], folder: Path, discarded: int | None = None) -> str:
    """Its output; fails if it does not exit soon, or leaves a process or a file behind.

    The only tracebacks are those of exceptions that Python discarded, `discarded` of them where that is known.
    """
    try:
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert engines(folder) == []
    assert list(folder.iterdir()) == []
    ignored = output.count("Exception ignored in")
    assert output.count("Traceback") == ignored and discarded in (None, ignored)
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


def test_a_signal_whose_exception_python_discards_ends_the_start(tmp_path: Path) -> None:
    """Imports run callbacks of weak references, in which what a signal's handler raises is lost: the server went on."""
    sockets, site = tmp_path / "sockets", tmp_path / "site"
    sockets.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(DISCARDED_SIGNAL)
    process = start(sockets, path=site)
    finish(process, sockets, discarded=1)
