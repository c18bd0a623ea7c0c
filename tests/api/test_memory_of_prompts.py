"""Memory of the API process after prompts of megabytes: it returns to the system."""

import psutil
import pytest

from tests.hostile.bombs import long_prompts
from tests.hostile.scenario import SHORT, Outcome, send_all
from tests.live import live_server

MIB = 1 << 20
CACHES = 40 * MIB  # what the caches may have come to hold


@pytest.mark.long
async def test_freed_memory_of_long_prompts_returns_to_the_system() -> None:
    """The C library kept 110 MiB of what prompts of up to 15 MiB had taken, and the process that renders another 40."""
    with live_server() as server:
        await send_all(server, list(long_prompts(SHORT))[:2], Outcome())
        processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]
        before = {process.pid: process.memory_info().rss for process in processes}
        outcome = await send_all(server, long_prompts(SHORT), Outcome(), 1)
        assert outcome.faults == []
        grown = sum(process.memory_info().rss - before[process.pid] for process in processes)
        assert grown < CACHES
