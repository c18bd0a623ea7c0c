"""Log lines into a pipe that nobody reads, and a start whose output cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.api.log_writer import MAX_PENDING_CHARACTERS, LogWriter


def test_a_pipe_that_nobody_reads_holds_up_nothing_and_the_lost_lines_are_counted() -> None:
    """Three paths of 30 kB into an unread pipe stopped the whole server."""
    reading, writing = os.pipe()
    writer, line = LogWriter(writing), "x" * 29_999 + "\n"
    for _ in range(2 * MAX_PENDING_CHARACTERS // len(line)):
        writer.write(line)
    assert writer.num_dropped > 100
    with os.fdopen(reading, "rb") as pipe:
        while b"log lines were dropped" not in (found := pipe.readline()):
            assert found == line.encode()
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_start_that_cannot_write_ends_with_one_line() -> None:
    """It neither became ready nor ended."""
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "server", "serve", "--port", "0"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.decode() == "toolwire: cannot write to standard output: No space left on device\n"
