"""Compares the compiled CPU kernels with torch on the same weights, alternating step by step in one process.

    python -m benchmarks.kernels /tmp/qwen3-0.6b [--threads 2] [--rounds 9]

Milliseconds are medians over the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from server.messages import Sampling
from server.model.batch import Batch, Row, RowSampling
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings

BLOCK_SIZE, NUM_BLOCKS = 32, 1024
SAMPLING = RowSampling(Sampling(max_tokens=1 << 20, temperature=0.0), 0, [], [])


def row(num_tokens: int, start: int, first_block: int = 0) -> Row:
    """`num_tokens` tokens after `start` cached ones, in blocks of its own."""
    num_blocks = -(-(start + num_tokens) // BLOCK_SIZE)
    return Row([7] * num_tokens, start, range(first_block, first_block + num_blocks), 1, SAMPLING)


def steps() -> dict[str, list[Row]]:
    """The measured steps by name."""
    named = {
        "prompt of 512": [row(512, 0)],
        "prompt, 512 behind 1488": [row(512, 1488)],
        "1 row behind 128": [row(1, 128)],
        "1 row behind 2000": [row(1, 2000)],
        "5 tokens behind 2000": [row(5, 2000)],
        "4 rows of 5 behind 3500": [row(5, 3500, 111 * i) for i in range(4)],
    }
    return named | {
        f"{count} rows behind 128": [row(1, 128, 5 * i) for i in range(count)] for count in (4, 8, 16, 32, 64)
    }


def seconds(runner: Runner, rows: Sequence[Row]) -> float:
    """Seconds of one step, including sampling."""
    began = time.perf_counter()
    batch = Batch(tuple(rows))
    runner.sample(runner.launch(batch), batch, None).read()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    runners = []
    for kernels in (True, False):
        settings = EngineSettings(device="cpu", cpu_kernels=kernels, threads=options.threads)
        loaded = load(options.checkpoint, settings, lambda fraction: None)
        print(f"{type(loaded.backbone).__name__}: loaded in {loaded.load_s:.2f} s")
        runners.append(Runner(loaded, NUM_BLOCKS, BLOCK_SIZE))
    print(f"{torch.get_num_threads()} threads\n\n{'step':26} {'kernels ms':>10} {'torch ms':>10} {'ratio':>6}")
    for name, rows in steps().items():
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            for runner, own in zip(runners, times, strict=True):
                own.append(1e3 * seconds(runner, rows))
        ours, theirs = (statistics.median(own) for own in times)
        print(f"{name:26} {ours:10.2f} {theirs:10.2f} {theirs / ours:6.2f}", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
