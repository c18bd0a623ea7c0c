"""Start-up time, from the command to `/ready`: the median of several starts, with CPU time and memory.

    python -m benchmarks.startup [MODEL] [--times 5]

MODEL is a folder, tiny (the default) or smollm2. The first start, which fills the file cache, is not counted.
"""

import argparse
import http.client
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import astuple, dataclass

import psutil

from benchmarks.servers import free_port

TIMEOUT_S = 600.0
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Start:
    """One start. CPU time and resident memory are those of the API process and of the engine process when ready."""

    ready_s: float
    api_cpu_s: float
    engine_cpu_s: float
    api_mib: float
    engine_mib: float


def start_once(model: str) -> Start:
    """Start the server, wait until it is ready, stop it. Raises RuntimeError if it does not become ready."""
    port = free_port()
    began_s = time.perf_counter()
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), "--model", model]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _is_ready(port):
            if server.poll() is not None or time.perf_counter() - began_s > TIMEOUT_S:
                raise RuntimeError(f"{' '.join(command)} did not become ready")
            time.sleep(POLL_S)
        ready_s = time.perf_counter() - began_s
        api = psutil.Process(server.pid)
        (engine,) = api.children()
        cpu = [sum(process.cpu_times()[:2]) for process in (api, engine)]
        memory = [process.memory_info().rss / 2**20 for process in (api, engine)]
        return Start(ready_s, *cpu, *memory)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    """Print one line a start, and their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tiny", help="folder of a checkpoint, or tiny or smollm2")
    parser.add_argument("--times", type=int, default=5, help="starts that are counted")
    arguments = parser.parse_args()
    layout = "{:>8} {:>9.2f} {:>9.2f} {:>12.2f} {:>9.0f} {:>12.0f}"
    print(f"{'':>8} {'ready s':>9} {'API CPU s':>9} {'engine CPU s':>12} {'API MiB':>9} {'engine MiB':>12}")
    start_once(arguments.model)
    starts = [start_once(arguments.model) for _ in range(arguments.times)]
    for number, start in enumerate(starts, 1):
        print(layout.format(number, *astuple(start)))
    medians = [statistics.median(column) for column in zip(*map(astuple, starts), strict=True)]
    print(layout.format("median", *medians))
    print(f"{arguments.model}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
