"""Compares the compiled CPU kernels of each instruction set with torch on the same weights, in turns in one process.

    python -m benchmarks.kernels /tmp/qwen3-0.6b [--isas avx2,torch] [--quantize none,int4]
        [--kv-dtype auto,int8] [--activation-bits auto,8,16] [--rounds 9]

The checkpoint is any that toolwire serves; `benchmarks.checkpoint` writes those of published shapes, also 30B-A3B's
layers (`30B-A3B-2`) and a hybrid. Tokens differ, so that experts do.

Milliseconds are the least of the rounds: other programs on the machine only add to them. torch takes the best
instructions that it knows, unless ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2 hold it to some.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from server.messages import Sampling
from server.model.batch import Batch, Row, RowSampling
from server.model.cpu.library import available_isas
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings

BLOCK_SIZE, NUM_BLOCKS = 32, 1024
SAMPLING = RowSampling(Sampling(max_tokens=1 << 20, temperature=0.0), 0, [], [])


def row(num_tokens: int, start: int, first_block: int = 0, slot: int = 0) -> Row:
    """`num_tokens` tokens after `start` cached ones, in blocks of its own."""
    num_blocks = -(-(start + num_tokens) // BLOCK_SIZE)
    ids = [(7 + 7919 * (slot + token)) % 50_000 for token in range(num_tokens)]
    return Row(ids, start, range(first_block, first_block + num_blocks), 1, SAMPLING, slot)


def steps() -> dict[str, list[Row]]:
    """The measured steps by name."""
    named = {
        "prompt of 512": [row(512, 0)],
        "prompt of 2000": [row(2000, 0)],
        "prompt, 512 behind 1488": [row(512, 1488)],
        "1 row behind 128": [row(1, 128)],
        "1 row behind 2000": [row(1, 2000)],
        "5 tokens behind 2000": [row(5, 2000)],
        "4 rows of 5 behind 3500": [row(5, 3500, 111 * i, i) for i in range(4)],
    }
    return named | {
        f"{count} rows behind 128": [row(1, 128, 5 * i, i) for i in range(count)] for count in (4, 8, 16, 32, 64)
    }


def seconds(runner: Runner, rows: Sequence[Row]) -> float:
    """Seconds of one step, including sampling."""
    began = time.perf_counter()
    batch = Batch(tuple(rows))
    runner.sample(runner.launch(batch), batch, None).read()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--isas", type=lambda text: text.split(","), default=[*available_isas(), "torch"])
    parser.add_argument("--quantize", type=lambda text: text.split(","), default=["none"])
    parser.add_argument("--kv-dtype", type=lambda text: text.split(","), default=["auto"])
    parser.add_argument("--activation-bits", type=lambda text: text.split(","), default=["auto"])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="measure the steps whose name contains this")
    options = parser.parse_args()
    runners = []
    columns = list(product(options.isas, options.quantize, options.kv_dtype, options.activation_bits))
    names = [" ".join(part for part in column if part not in ("none", "auto")) for column in columns]
    for name, (isa, quantize, kv_dtype, bits) in zip(names, columns, strict=True):
        settings = EngineSettings(
            device="cpu",
            dtype=options.dtype,
            cpu_isa=isa,
            threads=options.threads,
            quantize=quantize,
            kv_dtype=kv_dtype,
            activation_bits=bits,
        )
        loaded = load(options.checkpoint, settings, lambda fraction: None)
        form = f"{type(loaded.backbone).__name__} in {loaded.dtype}, {loaded.weight_bytes >> 20} MiB"
        print(f"{name}: {form}, loaded in {loaded.load_s:.2f} s")
        runners.append(Runner(loaded, NUM_BLOCKS, BLOCK_SIZE, num_slots=64))
    widths = [max(12, len(name)) for name in names]
    heads = (f" {name:>{width}}" for name, width in zip(names, widths, strict=True))
    print(f"{torch.get_num_threads()} threads\n\n{'step':26}" + "".join(heads))
    for name, rows in steps().items():
        if options.only not in name:
            continue
        times: list[list[float]] = [[] for _ in runners]
        for _ in range(options.rounds):
            for runner, own in zip(runners, times, strict=True):
                own.append(1e3 * seconds(runner, rows))
        least = (f" {min(own):{width}.2f}" for own, width in zip(times, widths, strict=True))
        print(f"{name:26}" + "".join(least), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
