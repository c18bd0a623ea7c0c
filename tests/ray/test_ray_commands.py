"""The commands of the page about scaling that start the Ray Serve application, as a reader types them.

`make test-ray` runs these tests, with a Python that has Ray.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.live import ROOT

pytest.importorskip("ray")

PROGRAMS = Path(sys.executable).parent
pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]


def commands() -> list[str]:
    """The lines of the page's first block about Ray behind the installation."""
    section = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").split("\n## Ray\n")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [line for line in block[1].splitlines() if not line.startswith("pip ")]


def test_the_commands_start_two_engines(tmp_path: Path) -> None:
    """On two processors API replicas that reserved half of one beside two engines waited for it for ever."""
    serve, curl = commands()
    log = tmp_path / "log"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    with log.open("wb") as out:
        running = subprocess.Popen(serve.split(), cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline_s = time.monotonic() + 180
        while len(_engines()) < 2:
            assert running.poll() is None and time.monotonic() < deadline_s, log.read_text(errors="replace")[-5000:]
            time.sleep(0.5)
        shown = subprocess.run(curl.split(), capture_output=True, text=True, timeout=60, check=True).stdout
        assert '"toolwire-demo"' in shown
    finally:
        running.send_signal(signal.SIGINT)  # as Ctrl-C, which ends the application and Ray
        running.wait(120)


def _engines() -> list[str]:
    """The addresses of those that take requests; none while the application does not answer."""
    try:
        reply = httpx.get("http://127.0.0.1:8000/v1/engines", timeout=5)
    except httpx.HTTPError:
        return []
    found = reply.json()["data"] if reply.status_code == 200 else []
    return [one["url"] for one in found if one["state"] == "up"]
