"""A peer that hangs on a lent card must cost its own time limit, not the run."""

import sys
import time

import pytest

from benchmarks.gpu_figures import TIME_LIMIT, Figure
from benchmarks.gpu_peers import decode_rate, peer_tasks, run_limited

FIGURE = '{"shape": "tiny", "way": "generate", "batch": 8, "tok_per_s": 5.0}'
STAND_IN = """
import sys, time
print("a library's message\\nready", flush=True)
for task in sys.argv[1:]:
    if task.startswith("continuous"):
        time.sleep(60)
    print('%s', flush=True)
"""
DEADLINE_S = 30.0


def _run(program: str, measurement_s: float) -> list[Figure]:
    tasks = peer_tasks((1, 8), continuous=True)
    command = [sys.executable, "-c", program]
    return run_limited(command, "tiny", tasks, time.monotonic() + DEADLINE_S, measurement_s)


def test_a_measurement_that_hangs_ends_with_its_process_and_the_next_ones_are_tried() -> None:
    began_s = time.monotonic()
    figures = _run(STAND_IN % FIGURE, 0.3)
    assert time.monotonic() - began_s < DEADLINE_S
    assert [(one.tok_per_s, one.fault) for one in figures] == [
        (5.0, None), (5.0, None), (None, TIME_LIMIT), (None, TIME_LIMIT),
    ]  # fmt: skip
    assert [(one.way, one.batch) for one in figures[2:]] == [("continuous batching", 8), ("continuous batching", 1)]


def test_a_process_that_cannot_load_its_model_is_not_started_again() -> None:
    figures = _run("import sys; sys.exit('no such device')", 5.0)
    assert len(figures) == 4 and {one.fault for one in figures} == {"the process ended: no such device"}


def test_the_rate_is_that_of_all_streams_together() -> None:
    """With the steps in which prompts are computed, or streams have ended, a peer would seem slower than it is."""
    early, late = [0.0, 5.0, 5.1, 5.2, 5.3], [4.9, 5.0, 5.1, 5.2, 5.3, 9.0]
    assert decode_rate([early, late]) == pytest.approx(8 / 0.4)
    with pytest.raises(ValueError, match="take more steps"):
        decode_rate([[0.0, 1.0], [0.9, 2.0]])
