"""Constraints are made by several threads at once, from the first request on."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST_USE = """
import sys, threading
from server.dialects.index import DIALECTS
from server.dialects.protocol import Choice, Tool, Wanted
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)

def constrain(number):
    wanted = Wanted((Tool(f"tool{number}", {"type": "object"}),), Choice("required"), None, {})
    start.wait()
    assert DIALECTS[0].constrain(wanted)

threads = [threading.Thread(target=constrain, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_first_requests_that_come_together_do_not_crash_the_process() -> None:
    """msgspec 0.22 builds what it knows of a dataclass at its first use; a second thread in there was a segfault."""
    for _ in range(6):
        subprocess.run([sys.executable, "-c", FIRST_USE], check=True, cwd=ROOT)
