"""Throughput of 256 requests that arrive at once, with the published workload of nano-vllm and mini-sglang.

    python -m benchmarks.gpu_throughput [--shape 0.6B] [--max-batch-tokens 2048 16384] [--limit-s 150] [--out FILE]

The workload is that of nano-vllm's bench.py, drawn from the same random numbers: prompts of 100 to 1024 ids up to
10,000, replies of 100 to 1024 tokens that no end token ends (133,966 in all), temperature 0.6. Weights are random and
created on the device. The engine's scheduler, pipeline and runner are driven as in the engine process, with CUDA
graphs, overlap and fused kernels where the device has them; there is no HTTP, and no text is decoded. Seconds are those
from the first step to the last, prompts included; loading, compiling and capturing come before. On a CPU
(--device cpu --shape tiny --sequences 4 --shortest 3 --longest 9) the same code runs as a self-test.
"""

import argparse
import gc
import json
import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.decoding import Engine
from benchmarks.gpu_figures import device_name, random_model
from benchmarks.time_limit import time_limit
from server.engine.blocks import Blocks
from server.messages import Sampling
from server.model.graphs.decode_graphs import padded_sizes
from server.model.layers.packed_linear import pack_linears
from server.model.loading.pretrained import ATTENTION_NAME, wrap_model
from server.model.runner import Runner
from server.settings import EngineSettings

MOST_ID = 10_000
TEMPERATURE = 0.6
BLOCK_TOKENS = EngineSettings().block_size
SPARE_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts, and the number of tokens of each reply."""

    prompts: list[list[int]]
    reply_tokens: list[int]

    @property
    def num_blocks(self) -> int:
        """KV blocks that hold all of it at once."""
        pairs = zip(self.prompts, self.reply_tokens, strict=True)
        return SPARE_BLOCKS + sum(-(-(len(prompt) + count + 1) // BLOCK_TOKENS) for prompt, count in pairs)


def published_workload(sequences: int, shortest: int, longest: int) -> Workload:
    """The workload of nano-vllm's bench.py, which draws all prompts first, then the lengths of replies."""
    rng = random.Random(0)
    prompts = [[rng.randint(0, MOST_ID) for _ in range(rng.randint(shortest, longest))] for _ in range(sequences)]
    return Workload(prompts, [rng.randint(shortest, longest) for _ in range(sequences)])


def warm_ups(work: Workload) -> list[Workload]:
    """What is run before: steps of every captured size, as short replies end one after another, then the prompts."""
    indices = range(len(work.prompts))
    short = Workload([prompt[:4] for prompt in work.prompts], [6 + 2 * index // 3 for index in indices])
    return [short, Workload(work.prompts, [2 for _ in indices])]


def run(
    runner: Runner, work: Workload, temperature: float, max_batch_tokens: int, *, overlap: bool = True
) -> dict[str, Any]:
    """Seconds, steps and tokens of one workload."""
    settings = [
        Sampling(count, temperature=temperature, ignore_eos=True, seed=seed)
        for seed, count in enumerate(work.reply_tokens, 1)
    ]
    blocks = Blocks(runner.pool.num_blocks, BLOCK_TOKENS, caching=False)
    engine = Engine(runner, blocks, work.prompts, settings, overlap=overlap, max_batch_tokens=max_batch_tokens)
    num_steps, all_started_s = 0, None
    began = time.perf_counter()
    while engine.has_work:
        engine.step()
        num_steps += 1
        if all_started_s is None and not engine.in_prefill:
            all_started_s = time.perf_counter() - began
    seconds = time.perf_counter() - began
    assert engine.num_written == sum(work.reply_tokens), "no reply ended early"
    return {
        "temperature": temperature,
        "max_batch_tokens": max_batch_tokens,
        "prompt_tokens": sum(map(len, work.prompts)),
        "output_tokens": engine.num_written,
        "seconds": round(seconds, 3),
        "all_started_s": None if all_started_s is None else round(all_started_s, 3),
        "steps": num_steps,
        "preemptions": engine.num_preemptions,
        "output_tok_per_s": round(engine.num_written / seconds, 1),
    }


def measure(options: argparse.Namespace, device: torch.device, report: dict[str, Any]) -> None:
    """Load, warm up, and run the workload with every setting; what is found is added to the report."""
    began = time.perf_counter()
    model = random_model(options.shape, device, ATTENTION_NAME)
    pack_linears(model)
    loaded = wrap_model(model, device, time.monotonic())
    work = published_workload(options.sequences, options.shortest, options.longest)
    runner = Runner(loaded, work.num_blocks, BLOCK_TOKENS)
    if not options.no_graphs:
        runner.capture_graphs(padded_sizes(options.sequences))
    report["attention and decode steps"] = runner.describe()
    gc.collect()
    gc.freeze()  # as the engine does once it has loaded
    for temperature in options.temperatures:
        for warm_up in warm_ups(work):
            run(runner, warm_up, temperature, options.max_batch_tokens[0])
    report["prepared_s"] = round(time.perf_counter() - began, 1)
    for max_batch_tokens in options.max_batch_tokens:
        for temperature in options.temperatures:
            report["runs"].append(run(runner, work, temperature, max_batch_tokens))
            print(json.dumps(report["runs"][-1]), flush=True)
    if device.type == "cuda":
        report["peak_bytes"] = torch.cuda.max_memory_allocated(device)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="0.6B")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--shortest", type=int, default=100)
    parser.add_argument("--longest", type=int, default=1024)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[TEMPERATURE, 0.0])
    parser.add_argument("--max-batch-tokens", type=int, nargs="+", default=[EngineSettings().max_batch_tokens, 16384])
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--limit-s", type=float, default=150)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_throughput.json"))
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    report: dict[str, Any] = {
        "device": device_name(device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "shape": options.shape,
        "sequences": options.sequences,
        "runs": [],
    }

    def write() -> None:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(report), flush=True)

    with time_limit(options.limit_s, write), torch.inference_mode():
        measure(options, device, report)
    write()
    return report


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")  # which kernels are in use, and why not
    main()
