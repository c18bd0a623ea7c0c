"""Decode speed on a GPU in under ten minutes: attention variants, with and without CUDA graphs, and transformers.

    python -m benchmarks.gpu [--shapes 0.6B 8B] [--batches 1 8 64 256] [--limit-s 540] [--out FILE]

Weights are random and created on the device. Each figure is tokens per second over all streams (median of steps) and,
where the card's bandwidth is known, its fraction of the limit reached if a step took as long as reading the weights and
the keys and values once. The first token of a prompt of 2000, alone on the card, stands beside its arithmetic limit
(`gpu_limits.py`). transformers is measured in a process of its own (`gpu_peers.py`). Failures are recorded with their
reason, as are measurements for which no time was left; the file is written after each part, and the run ends 15 s after
the limit at the latest. On a CPU (--device cpu --shapes tiny) the same code runs as a self-test.
"""

import argparse
import json
import logging
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.checkpoint import config_of
from benchmarks.decoding import Engine
from benchmarks.engine import random_prompt
from benchmarks.gpu_figures import FAULTS, NO_TIME, Figure, Task, Way, device_name, measure, random_model, table
from benchmarks.gpu_limits import FIRST_TOKENS, Card, first_token, measure_card
from benchmarks.gpu_memory import compare_memory
from benchmarks.gpu_peers import measure_peers
from benchmarks.time_limit import time_limit
from benchmarks.varlen import PAGE_TOKENS, VarlenKernels, reads_block_tables
from server.engine.blocks import Blocks
from server.messages import Sampling
from server.model.attention.gpu import CudaKvPool, Kernels
from server.model.attention.tiles import tile_sizes
from server.model.graphs.decode_graphs import padded_sizes
from server.model.kernel_selection import choose_kernels
from server.model.layers.decoder import open_backbone
from server.model.layers.packed_linear import pack_linears
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.pretrained import ATTENTION_NAME, wrap_model
from server.model.runner import Runner, pool_shape

BLOCK_TOKENS = 32
PEERS_PART = 0.45  # fraction of the time
GRACE_S = 15.0  # of the last measurement begun in time; then the run ends with what it has


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to decode."""

    name: str
    kernels: Kernels | None
    block_size: int
    graphs: bool = False
    is_fused: bool = True  # fused layer kernels, where they are in use
    is_sampled: bool = False  # with Qwen3's recommended settings for non-thinking replies; else greedy
    overlap: bool = False  # each step launched before the previous one is read, as the engine does on a GPU


def variants(loaded: LoadedModel, task: Task) -> list[Variant]:
    """The variants that this device supports, most important first."""
    gather = Variant("gather", None, BLOCK_TOKENS), Variant("gather overlap", None, BLOCK_TOKENS, overlap=True)
    if loaded.device.type != "cuda":
        return list(gather)
    found: list[Variant] = []
    kernels = choose_kernels(pool_shape(loaded, BLOCK_TOKENS), loaded.kv.heads, loaded.device)
    if kernels is not None:
        triton = Variant("triton graphs overlap", kernels, BLOCK_TOKENS, graphs=True, overlap=True)
        found += [triton, replace(triton, name="triton graphs overlap, unfused", is_fused=False)]
        found.append(replace(triton, name="triton graphs overlap, sampled", is_sampled=True))
    if reads_block_tables():
        longest = task.prompt_tokens + num_ids_of(task, max(task.batches))
        varlen = VarlenKernels(-(-longest // PAGE_TOKENS))
        found.append(Variant("varlen graphs overlap", varlen, PAGE_TOKENS, graphs=True, overlap=True))
        found.append(Variant("varlen", varlen, PAGE_TOKENS))
    if kernels is not None:
        found += [replace(triton, name="triton graphs", overlap=False), Variant("triton", kernels, BLOCK_TOKENS)]
    return found + list(gather)


def num_ids_of(task: Task, batch: int) -> int:
    """Ids that a stream may generate: the first ones generate while the last prompts are computed."""
    return task.steps + 2 + batch // 8


def decode(loaded: LoadedModel, variant: Variant, batch: int, task: Task) -> tuple[float, float]:
    """(seconds of all prompts, decoded tokens per second)."""
    size, device = variant.block_size, loaded.device
    num_ids = num_ids_of(task, batch)
    per_stream = -(-(task.prompt_tokens + num_ids) // size)
    runner = Runner(loaded, 1, size)
    shape = pool_shape(loaded, size)
    sizes = tile_sizes(shape, loaded.kv.heads)
    by_torch = isinstance(runner.pool, CudaKvPool) and runner.pool.prompts_by_torch
    runner.pool = CudaKvPool(
        shape, batch * per_stream, device, variant.kernels, sizes, prompts_by_torch=by_torch and bool(variant.kernels)
    )
    padded = next(size for size in padded_sizes(max(256, batch)) if size >= batch)
    if variant.graphs and not runner.capture_graphs((padded,)):
        raise RuntimeError("the step could not be captured; the log says why")
    prompts = [random_prompt(task.prompt_tokens, index) for index in range(batch)]
    blocks = Blocks(batch * per_stream, size, caching=False)
    temperature = 0.7 if variant.is_sampled else 0.0
    sampling = Sampling(num_ids, temperature=temperature, top_k=20, top_p=0.8, ignore_eos=True)
    engine = Engine(runner, blocks, prompts, sampling, overlap=variant.overlap)
    began = time.perf_counter()
    while engine.in_prefill:
        engine.step()
    first_s = time.perf_counter() - began
    times = [engine.step() for _ in range(task.steps)]
    assert engine.num_running == batch, "every stream was in every step"
    return first_s, batch / statistics.median(times)


def limit(loaded: LoadedModel, model: Any, card: Card, batch: int, task: Task) -> float | None:
    """Tokens per second if a step took as long as reading its bytes once; None if the bandwidth is unknown."""
    if not card.sheet_bytes_per_s:
        return None
    tied = model.config.tie_word_embeddings
    looked_up = 0 if tied else model.get_input_embeddings().weight.nbytes  # a step reads only a few rows of it
    context = task.prompt_tokens + task.steps // 2
    kv = pool_shape(loaded, 1).bytes_per_block * context * batch
    return batch * card.sheet_bytes_per_s / (loaded.weight_bytes - looked_up + kv)


@dataclass(slots=True)
class Report:
    """What has been measured so far."""

    file: Path
    about: dict[str, Any]
    began_s: float = field(default_factory=time.monotonic)
    figures: list[Figure] = field(default_factory=list)
    first_tokens: dict[str, Any] = field(default_factory=dict)  # by shape
    memory: dict[str, Any] = field(default_factory=dict)  # by shape

    def content(self) -> dict[str, Any]:
        """As written to the file."""
        return {
            **self.about,
            "seconds": time.monotonic() - self.began_s,
            "first_token": self.first_tokens,
            "figures": [asdict(figure) for figure in list(self.figures)],
            "memory": self.memory,
        }

    def write(self) -> None:
        """Write the file."""
        self.file.write_text(json.dumps(self.content(), indent=1) + "\n", encoding="utf-8")

    def end(self) -> None:
        """Write the file and print the table."""
        self.write()
        print(
            json.dumps({"card": self.about["card"], "first_token": self.first_tokens}), *table(self.figures), sep="\n"
        )


def measure_own(shape: str, device: torch.device, card: Card, task: Task, report: Report) -> None:
    """Figures of all variants, the first token of a long prompt, and estimated and measured memory."""
    model = random_model(shape, device, ATTENTION_NAME)
    pack_linears(model)
    loaded = wrap_model(model, device, time.monotonic())
    report.first_tokens[shape] = _if_time(task, lambda: _first_token(loaded, model, card))
    print(json.dumps({"shape": shape, "first_token": report.first_tokens[shape]}), flush=True)
    limits = {batch: limit(loaded, model, card, batch, task) for batch in task.batches}
    for variant in variants(loaded, task):
        used = (
            loaded if variant.is_fused else replace(loaded, backbone=open_backbone(model.get_decoder()), one_row=None)
        )
        way: Way = partial(decode, used, variant)
        for batch in task.batches:
            figure = measure(Figure(shape, variant.name, batch), way, limits[batch], task)
            print(json.dumps(asdict(figure)), flush=True)
            report.figures.append(figure)
    report.memory[shape] = _if_time(task, lambda: compare_memory(loaded, config_of(shape)))


def _first_token(loaded: LoadedModel, model: Any, card: Card) -> dict[str, Any]:
    tokens = FIRST_TOKENS if loaded.device.type == "cuda" else 70
    runner = Runner(loaded, 4 + tokens // BLOCK_TOKENS, BLOCK_TOKENS)
    return first_token(runner, model.config, card, BLOCK_TOKENS, tokens)


def _if_time(task: Task, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `call` finds, or the reason why there is nothing."""
    if time.monotonic() > task.deadline_s:
        return {"fault": NO_TIME}
    try:
        return call()
    except FAULTS as error:
        return {"fault": f"{type(error).__name__}: {error}"[:300]}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", default=["0.6B", "8B"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--limit-s", type=float, default=540)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    card = measure_card(device_name(device), device)
    about = {
        "card": asdict(card),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": _commit(),
        "task": {"prompt_tokens": options.prompt_tokens, "steps": options.steps},
    }
    report = Report(options.out, about)
    with time_limit(max(0.0, options.limit_s) + GRACE_S, report.end), torch.inference_mode():
        for number, shape in enumerate(options.shapes, 1):
            # Each shape gets an equal part of the time plus what earlier ones left over; peers get a part of that.
            share, peers_part = options.limit_s / len(options.shapes), 0.0 if options.no_peers else PEERS_PART
            deadline = report.began_s + share * number
            task = Task(tuple(options.batches), options.prompt_tokens, options.steps, deadline - share * peers_part)
            measure_own(shape, device, card, task, report)
            report.write()
            if not options.no_peers:
                if device.type == "cuda":
                    torch.cuda.empty_cache()  # the other process needs the memory
                report.figures += measure_peers(shape, device, replace(task, deadline_s=deadline))
                report.write()
    report.end()
    return report.content()


def _commit() -> str:
    found = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=False)
    return found.stdout.strip()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")  # which kernels are in use, and why not
    main()
