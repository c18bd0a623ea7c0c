"""A server under load while another process takes and gives back the device's memory: python -m benchmarks.gpu_guard

    python -m benchmarks.gpu_guard [--shape 0.6B] [--streams 192] [--limit-s 200] [--out FOLDER]

Makes a checkpoint of random weights with the built-in model's tokenizer, starts `toolwire serve` on it, loads it with
streams over HTTP (`stream_clients.py`), and lets `gpu_taker.py` squeeze the device. Every stream must end with its
usage or be shed with a Retry-After, the engine process must live, and the guard must have acted and have given all
blocks back at the end; else it exits with 1. The folder gets the report, the server's log and how each request ended.
On a CPU (--device cpu --shape tiny --most-share 0.01 --streams 4) the same code runs as a self-test.
"""

import argparse
import itertools
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

from benchmarks.servers import free_port
from benchmarks.stream_clients import COMPLETE, SHED
from benchmarks.time_limit import time_limit

MODEL = "bench"
POLL_S = 0.5
START_S, DRAIN_S, RECOVER_S = 120.0, 40.0, 20.0
COUNTERS = {
    "tokens": "toolwire_engine_output_tokens_total",
    "preemptions": "toolwire_engine_preemptions_total",
    "restarts": "toolwire_engine_restarts_total",
    "ooms": "toolwire_memory_ooms_total",
    "allowed": "toolwire_memory_allowed_blocks",
    "total": "toolwire_kv_blocks_total",
    "used": "toolwire_kv_blocks_used",
    "running": "toolwire_sequences_running",
    "waiting": "toolwire_sequences_waiting",
    "level": "toolwire_memory_level",
}
LOG_LINES = 30  # of the begin and the end of the server's log


@dataclass(slots=True)
class Run:
    """Everything that is started and seen; `processes` are ended whatever happens."""

    folder: Path
    url: str = ""
    start_s: float = 0.0
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)  # of the server's metrics
    events: dict[tuple[float, str], None] = field(default_factory=dict)  # of the guard, in order
    squeezes: list[dict[str, Any]] = field(default_factory=list)  # lines of the taker
    ended: list[dict[str, Any]] = field(default_factory=list)  # requests
    faults: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """The server's output."""
        return self.folder / "server.log"

    def start(self, *arguments: str, out: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a Python module."""
        command = [sys.executable, "-m", *arguments]
        errors = out if out != subprocess.PIPE else None
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=errors, text=True)
        self.processes.append(process)
        return process

    def collect(self, process: subprocess.Popen[str], into: list[dict[str, Any]]) -> threading.Thread:
        """Read a process's JSON lines in a thread."""

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    into.append(json.loads(line))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()


def start_server(run: Run, options: argparse.Namespace) -> subprocess.Popen[str]:
    """`toolwire serve`, ready. Raises RuntimeError with its output if it is not."""
    port = free_port()
    run.url = f"http://127.0.0.1:{port}"
    arguments = ["--model", str(options.checkpoint), "--device", options.device, "--port", str(port)]
    arguments += ["--served-model-name", MODEL, "--generation-config", "none", "--no-self-test"]
    began = time.monotonic()
    with run.log.open("w") as out:
        process = run.start("server", "serve", *arguments, *options.server_option, out=out)
    while True:
        try:
            if httpx.get(f"{run.url}/ready").status_code == 200:
                break
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() - began > START_S:
            raise RuntimeError(f"the server is not ready (exit code {process.poll()}): {run.log.read_text()[-2000:]}")
        time.sleep(0.1)
    run.start_s = time.monotonic() - began
    return process


def engine_pids(server: subprocess.Popen[str]) -> list[int]:
    """Process ids of the server's engines."""
    return [one.pid for one in psutil.Process(server.pid).children() if "server.engine" in one.cmdline()]


def poll(run: Run, http: httpx.Client) -> dict[str, float]:
    """Read the server's metrics and the guard's events."""
    text = http.get("/metrics").text
    found = {name: re.search(rf"^{metric} (\S+)$", text, re.MULTILINE) for name, metric in COUNTERS.items()}
    sample = {name: float(match.group(1)) for name, match in found.items() if match}
    sample["time_s"] = time.time()
    run.samples.append(sample)
    for at_s, event in http.get("/v1/memory").json()["events"]:
        run.events[at_s, event] = None
    return sample


def drive(run: Run, options: argparse.Namespace) -> None:
    """Load the server through all squeezes, then until every stream has ended and the blocks are back."""
    server = start_server(run, options)
    engines = engine_pids(server)
    per_process = -(-options.streams // options.client_processes)
    clients = [
        run.start(
            *("benchmarks.stream_clients", run.url, MODEL, "--streams", str(per_process), "--seed", str(seed)),
            *("--prompt-words", str(options.prompt_words), "--most-tokens", str(options.most_tokens)),
        )
        for seed in range(options.client_processes)
    ]
    readers = [run.collect(client, run.ended) for client in clients]
    shares, leaves = map(str, options.most_share), map(str, options.leave_gib)
    time.sleep(options.quiet_s)
    taker = run.start(
        *("benchmarks.gpu_taker", "--device", options.device, "--squeeze-s", str(options.squeeze_s)),
        *("--pause-s", str(options.pause_s), "--most-share", *shares, "--leave-gib", *leaves),
    )
    readers.append(run.collect(taker, run.squeezes))
    with httpx.Client(base_url=run.url, timeout=30.0) as http:
        while taker.poll() is None:
            _poll_alive(run, http, server, engines)
        _poll_for(run, http, server, engines, options.pause_s)
        for client in clients:
            assert client.stdin is not None
            client.stdin.close()
        until = time.monotonic() + DRAIN_S
        while any(client.poll() is None for client in clients) and time.monotonic() < until:
            _poll_alive(run, http, server, engines)
        if hanging := sum(client.poll() is None for client in clients):
            run.faults.append(f"streams of {hanging} client processes did not end within {DRAIN_S:.0f} s")
        until = time.monotonic() + RECOVER_S
        while (
            _poll_alive(run, http, server, engines)["allowed"] < run.samples[-1]["total"] and time.monotonic() < until
        ):
            pass
    if taker.returncode:
        run.faults.append(f"the process that takes memory ended with {taker.returncode}")
    server.send_signal(signal.SIGTERM)
    try:
        if code := server.wait(20):
            run.faults.append(f"the server ended with {code} after SIGTERM")
    except subprocess.TimeoutExpired:
        run.faults.append("the server did not end within 20 s of SIGTERM")


def _poll_for(run: Run, http: httpx.Client, server: subprocess.Popen[str], engines: list[int], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _poll_alive(run, http, server, engines)


def _poll_alive(run: Run, http: httpx.Client, server: subprocess.Popen[str], engines: list[int]) -> dict[str, float]:
    """Wait a moment, then poll. Raises RuntimeError once the engine process is another one."""
    time.sleep(POLL_S)
    if server.poll() is not None or engine_pids(server) != engines:
        raise RuntimeError(f"the engine process died: {run.log.read_text()[-2000:]}")
    return poll(run, http)


def judge(run: Run, options: argparse.Namespace) -> None:
    """Add what is wrong to the faults."""
    ends = Counter(one["end"] for one in run.ended)
    run.faults += [
        f"{count} requests: {end}" for end, count in ends.items() if end != COMPLETE and not end.startswith(SHED)
    ]
    if not ends[COMPLETE]:
        run.faults.append("no request was completed")
    last = run.samples[-1] if run.samples else {}
    if last.get("restarts"):
        run.faults.append(f"the engine was started again {last['restarts']:.0f} times")
    if last.get("allowed", 0) < last.get("total", 1):
        run.faults.append(f"{last.get('allowed')} of {last.get('total')} blocks are allowed at the end")
    if options.device == "cuda" and min((one["allowed"] for one in run.samples), default=0) >= last.get("total", 0):
        run.faults.append("the guard never acted: take more memory")


def summary(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    kinds = Counter(re.sub(r"[\d.]+", "N", event) for _, event in run.events)
    last = run.samples[-1] if run.samples else {}
    return {
        "faults": run.faults,
        "shape": options.shape,
        "device": options.device,
        "server_options": options.server_option,
        "streams": options.streams,
        "start_s": round(run.start_s, 1),
        "requests": dict(Counter(one["end"] for one in run.ended)),
        "phases": _phases(run),
        "guard_events": dict(kinds),
        "fewest_allowed": min((one.get("allowed", 0) for one in run.samples), default=None),
        "blocks": last.get("total"),
        "most_used": max((one.get("used", 0) for one in run.samples), default=None),
        "preemptions": last.get("preemptions"),
        "ooms": last.get("ooms"),
        "taker": run.squeezes,
        "log": _ends_of(run.log),
    }


def _ends_of(log: Path) -> list[str]:
    """First and last lines: what is in use, the memory plan, and what went wrong; without requests that were served."""
    before, _, after = (log.read_text(errors="replace") if log.exists() else "").partition("Try it:")
    lines = [line[:300] for line in (before + after.partition("\n}'")[2]).splitlines()]
    lines = [line for line in lines if line.strip() and "outcome=complete" not in line]
    return lines if len(lines) <= 2 * LOG_LINES else [*lines[:LOG_LINES], "...", *lines[-LOG_LINES:]]


def _phases(run: Run) -> list[dict[str, Any]]:
    """Tokens per second and times to the first token, quiet and squeezed, by the taker's times."""
    marks = [("quiet", run.samples[0]["time_s"] if run.samples else 0.0)]
    for line in run.squeezes:
        if line["event"] in ("begin", "end"):
            marks.append(("squeezed" if line["event"] == "begin" else "quiet", line["time_s"]))
    marks.append(("end", run.samples[-1]["time_s"] if run.samples else 0.0))
    return [
        _phase(run, name, begin, end)
        for (name, begin), (_, end) in itertools.pairwise(marks)
        if end - begin > 2 * POLL_S
    ]


def _phase(run: Run, name: str, begin: float, end: float) -> dict[str, Any]:
    inside = [one for one in run.samples if begin <= one["time_s"] <= end and "tokens" in one]
    span = inside[-1]["time_s"] - inside[0]["time_s"] if len(inside) > 1 else 0.0
    firsts = sorted(one["first_s"] for one in run.ended if begin <= one["began_s"] < end and one["first_s"] is not None)
    return {
        "phase": name,
        "seconds": round(end - begin, 1),
        "tok_per_s": round((inside[-1]["tokens"] - inside[0]["tokens"]) / span, 1) if span else None,
        "first_token_p50_s": round(firsts[len(firsts) // 2], 3) if firsts else None,
        "first_token_p99_s": round(firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))], 3) if firsts else None,
        "requests_begun": len(firsts),
        "fewest_allowed": min((one.get("allowed", 0) for one in inside), default=None),
        "preemptions": inside[-1]["preemptions"] - inside[0]["preemptions"] if span else None,
    }


def make_checkpoint_on(device: str, shape: str, folder: Path) -> None:
    """Write the checkpoint in a process of its own, which holds no memory of the device afterwards."""
    code = "import sys; from benchmarks.checkpoint import make_built_in; make_built_in(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, shape, str(folder), device], check=True)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="0.6B")
    parser.add_argument(
        "--checkpoint", type=Path, default=None, help="made there if need be; default: in the temporary folder"
    )
    parser.add_argument("--streams", type=int, default=192)
    parser.add_argument("--client-processes", type=int, default=4)
    parser.add_argument("--prompt-words", type=int, default=400)
    parser.add_argument("--most-tokens", type=int, default=500)
    parser.add_argument("--quiet-s", type=float, default=8)
    parser.add_argument("--most-share", type=float, nargs="+", default=[0.3, 0.6, 0.88])
    parser.add_argument("--leave-gib", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--squeeze-s", type=float, default=8)
    parser.add_argument("--pause-s", type=float, default=6)
    parser.add_argument("--server-option", action="append", default=[], help="as --server-option=--max-running=64")
    parser.add_argument("--limit-s", type=float, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_guard"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options.out)

    def write() -> None:
        report = summary(run, options)  # before what the ending of the processes adds
        run.end()
        (run.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        details = {"samples": run.samples, "events": [list(event) for event in run.events], "requests": run.ended}
        (run.folder / "details.json").write_text(json.dumps(details) + "\n", encoding="utf-8")
        print(json.dumps(report, indent=1), flush=True)

    def out_of_time() -> None:
        run.faults.append("the time limit was reached")
        write()

    with time_limit(options.limit_s, out_of_time):
        if options.checkpoint is None:  # 1.5 GB, which is not to be among the results
            options.checkpoint = Path(tempfile.gettempdir()) / f"toolwire-gpu-guard-{options.shape}"
        make_checkpoint_on(options.device, options.shape, options.checkpoint)
        try:
            drive(run, options)
        except (RuntimeError, httpx.HTTPError, KeyError) as error:
            run.faults.append(f"{type(error).__name__}: {error}")
        judge(run, options)
    write()
    return summary(run, options)


if __name__ == "__main__":
    sys.exit(bool(main()["faults"]))
