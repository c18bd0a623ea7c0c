"""Faults in an engine process on a signal; loaded by Python at start where this folder is on PYTHONPATH.

SIGUSR1: the next frame to the API process is no message. SIGUSR2: the memory probe raises for two seconds.
"""

import signal
import sys
import time
from typing import Any

PROBE_FAULT_S = 2.0


def _send_no_message(*_: object) -> None:
    mailbox = sys.modules["__main__"].PairMailbox
    send = mailbox.send

    def send_once(self: Any, mail: object) -> None:
        mailbox.send = send
        self._socket.send(b"no message")

    mailbox.send = send_once


def _break_probe(*_: object) -> None:
    probes = sys.modules["server.memory.host"].HostProbe, sys.modules["server.memory.probe"].GpuProbe
    until_s = time.monotonic() + PROBE_FAULT_S
    for probe in probes:
        probe.read = _raising_until(until_s, probe.read)


def _raising_until(until_s: float, read: Any) -> Any:
    def raising(self: Any) -> Any:
        if time.monotonic() < until_s:
            raise RuntimeError("the driver is gone")
        return read(self)

    return raising


if "server.engine" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, _send_no_message)
    signal.signal(signal.SIGUSR2, _break_probe)
