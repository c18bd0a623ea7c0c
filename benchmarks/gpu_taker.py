"""A process that takes most of a device's free memory and gives it back, again and again.

    python -m benchmarks.gpu_taker [--most-share 0.3 0.6 0.88] [--leave-gib 1 0.5 0.25] [--squeeze-s 8] [--pause-s 5]

Plain allocations of torch, never managed memory. In each squeeze it takes what is free but for `leave-gib`, in steps,
and so follows a server that frees some, up to `most-share` of the device; at its end it gives everything back. Prints
one JSON line at the begin and the end of each squeeze, with the time since the epoch.
"""

import argparse
import json
import time

import psutil
import torch

GIB = 1 << 30
STEP_BYTES, SMALLEST_BYTES = 4 * GIB, 32 << 20
STEP_S = 0.2


def main(argv: list[str] | None = None) -> None:
    """Squeeze as often as there are values of --most-share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--most-share", type=float, nargs="+", default=[0.3, 0.6, 0.88])
    parser.add_argument("--leave-gib", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--squeeze-s", type=float, default=8.0)
    parser.add_argument("--pause-s", type=float, default=5.0)
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    memory(device)  # makes the CUDA context before the first squeeze
    _say("started", device)
    for number, share in enumerate(options.most_share):
        time.sleep(options.pause_s)
        _say("begin", device, squeeze=number)
        leave = int(options.leave_gib[min(number, len(options.leave_gib) - 1)] * GIB)
        taken, num_refused, least_free = squeeze(device, share, leave, options.squeeze_s)
        _say("end", device, squeeze=number, taken=taken, refused=num_refused, least_free=least_free)


def squeeze(device: torch.device, most_share: float, leave: int, seconds: float) -> tuple[int, int, int]:
    """Take, hold and give back; returns most bytes held, allocations refused, and the least free memory seen."""
    held: list[torch.Tensor] = []
    taken = num_refused = 0
    least_free, _ = memory(device)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        free, total = memory(device)
        least_free = min(least_free, free)
        wanted = min(free - leave, STEP_BYTES, int(most_share * total) - taken)
        if wanted < SMALLEST_BYTES:
            time.sleep(STEP_S / 4)
            continue
        try:
            held.append(torch.empty(wanted, dtype=torch.uint8, device=device))
            held[-1].fill_(1)
            taken += wanted
        except (torch.OutOfMemoryError, MemoryError):  # the server was faster
            num_refused += 1
        time.sleep(STEP_S)
    held.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return taken, num_refused, least_free


def memory(device: torch.device) -> tuple[int, int]:
    """Free and total bytes of the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    host = psutil.virtual_memory()
    return host.available, host.total


def _say(event: str, device: torch.device, **figures: int) -> None:
    print(json.dumps({"event": event, "time_s": time.time(), "free": memory(device)[0], **figures}), flush=True)


if __name__ == "__main__":
    main()
