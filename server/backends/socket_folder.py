"""Temporary folder of an engine's socket, removed with its owner; a later process removes what a killed one left.

A folder belongs to a living process as long as its file `lock` is locked: the kernel drops the lock when the process
ends, so neither a reused process id nor another PID namespace on the same file system can mislead.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

PREFIX = "toolwire-"
LOCK = "lock"


class SocketFolder:
    """A folder that only its user can enter; construction removes abandoned ones. Raises OSError."""

    def __init__(self) -> None:
        remove_abandoned(Path(tempfile.gettempdir()))
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        self.path = Path(self._folder.name)
        self._lock = _locked(self.path / f"{LOCK}.new")
        # Under its final name it is locked from the beginning: nobody finds it unlocked.
        (self.path / f"{LOCK}.new").rename(self.path / LOCK)

    def close(self) -> None:
        """Remove it."""
        self._folder.cleanup()
        self._lock.close()


def remove_abandoned(parent: Path) -> None:
    """Remove the folders here that this user owns and whose process has ended."""
    for folder in parent.glob(f"{PREFIX}*/{LOCK}"):
        try:
            if folder.parent.lstat().st_uid == os.getuid():
                with _locked(folder):
                    shutil.rmtree(folder.parent, ignore_errors=True)
        except OSError:  # locked: its process lives; or gone meanwhile
            continue


def _locked(path: Path) -> BinaryIO:
    """This file, open and locked until it is closed. Raises BlockingIOError if another process has the lock."""
    file = os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
