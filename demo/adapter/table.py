"""The figures of README.md beside this file: make first-model-table [ARGS='--merge-adapter FOLDER']

Serves the first model, and sends it the requests written by hand, BFCL's questions and SGLang's tests. Options that are
not its own go to `toolwire serve`. Two cores take about ten minutes.
"""

import argparse
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_S = 120.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Return once the model is loaded. Raises SystemExit if the server ends, or is not ready in time."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ready"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise SystemExit("the server is not ready")


def main() -> int:
    """Run the three one after another; returns the exit code, that of the first one that failed."""
    parser = argparse.ArgumentParser(description="Evaluates the first model.")
    parser.add_argument("--wheel", type=Path, required=True, help="wheel of sglang")
    parser.add_argument("--limit", default="100", help="questions of each of BFCL's categories")
    own, others = parser.parse_known_args()
    python, port = sys.executable, free_port()
    url = f"http://127.0.0.1:{port}"
    serve = [python, "-m", "server", "serve", "--model", "smollm2", "--port", str(port), *others]
    programs = (
        ("demo.adapter.evaluate", f"{url}/v1"),
        ("demo.bfcl", f"{url}/v1", "--max-tokens", "200", "--clients", "8", "--limit", own.limit),
        ("demo.sglang_calls", f"{url}/v1", "--wheel", str(own.wheel)),
    )
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(server, url)
        codes = [subprocess.run((python, "-m", *program), check=False).returncode for program in programs]
    finally:
        server.terminate()
        server.wait()
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
