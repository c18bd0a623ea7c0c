"""A process of its own around the real probe: a line in is one reading out, as JSON. Warnings go to stderr.

The library that pynvml loads is decided when a process starts, so each test has its own.
"""

import logging
import sys

import msgspec

from server.memory.probe import DeviceSelector, GpuProbe, TorchFigures


def main() -> None:
    """argv: torch's index, torch's UUID, CUDA_VISIBLE_DEVICES or "unset", torch's reserved bytes or "none"."""
    logging.basicConfig(level=logging.INFO)
    index, uuid, visible, reserved = sys.argv[1:]
    gib = 1 << 30
    figures = None if reserved == "none" else lambda: TorchFigures(24 * gib, 9 * gib, int(reserved))
    probe = GpuProbe(DeviceSelector(int(index), uuid, None if visible == "unset" else visible, figures))
    for _ in sys.stdin:
        sys.stdout.write(msgspec.json.encode(probe.read()).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
