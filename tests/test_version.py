"""One version everywhere: what the command prints, what the API documents, what is packaged."""

import subprocess
import sys

from server.version import version


def test_the_command_prints_the_version() -> None:
    """A bug report starts with this line."""
    ended = subprocess.run([sys.executable, "-m", "server", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"toolwire {version()}\n"
