"""Decode speed on a GPU in under ten minutes: attention variants, with and without CUDA graphs, and transformers.

    python -m benchmarks.gpu [--shapes 0.6B 8B] [--batches 1 8 64 256] [--limit-s 540] [--out FILE]

Weights are random and created on the device. Each figure is tokens per second over all streams (median of steps) and,
where the card's bandwidth is known, its fraction of the limit reached if a step took as long as reading the weights and
the keys and values once. Failures are recorded with their reason, as are measurements for which no time was left. On a
CPU (--device cpu --shapes tiny) the same code runs as a self-test.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.checkpoint import config_of
from benchmarks.decoding import Engine
from benchmarks.engine import random_prompt
from benchmarks.gpu_memory import compare_memory
from benchmarks.varlen import PAGE_TOKENS, VarlenKernels, reads_block_tables
from server.engine.blocks import Blocks
from server.messages import Sampling
from server.model.attention.base import paged_attention
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
PEERS_PART = 0.35  # fraction of the time
BYTES_PER_S = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12}  # from the cards' data sheets
FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, ImportError, AssertionError)


@dataclass(frozen=True, slots=True)
class Task:
    """The workload: streams of `prompt_tokens` each, decoded for `steps`."""

    batches: tuple[int, ...]
    prompt_tokens: int
    steps: int
    deadline_s: float  # of time.monotonic


Way = Callable[[int, Task], tuple[float, float]]  # batch -> seconds of all prompts, decoded tokens per second


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


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement; `fault` is the reason if there is none."""

    shape: str
    way: str
    batch: int
    tok_per_s: float | None = None
    share_of_limit: float | None = None
    first_s: float | None = None  # prefill of all prompts
    fault: str | None = None


def random_model(shape: str, device: torch.device, attention: str) -> Any:
    """A model of this shape with random bfloat16 weights, created on the device."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config_of(shape), dtype=torch.bfloat16, attn_implementation=attention
        )
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return model.train(False).requires_grad_(False)


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
    runner.pool = CudaKvPool(shape, batch * per_stream, device, variant.kernels, sizes)
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


def generate(model: Any, batch: int, task: Task) -> tuple[float, float]:
    """transformers' generate() with two lengths, whose difference excludes prefill."""
    ids = torch.tensor([random_prompt(task.prompt_tokens, i) for i in range(batch)], device=model.device)
    seconds = []
    for new_tokens in (1, 1, 1 + task.steps):  # the first warms up
        began = time.perf_counter()
        limits = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **limits)[0, -1].item()
        seconds.append(time.perf_counter() - began)
    return seconds[1], batch * task.steps / (seconds[2] - seconds[1])


def continuous(model: Any, batch: int, task: Task) -> tuple[float, float]:
    """transformers' continuous batching with two lengths, whose difference excludes start and prefill."""
    prompts = [random_prompt(task.prompt_tokens, i) for i in range(batch)]
    seconds = []
    for new_tokens in (1, 1, 1 + task.steps):
        config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=0
        )
        began = time.perf_counter()
        replies = model.generate_batch(prompts, generation_config=config)
        seconds.append(time.perf_counter() - began)
        written = sum(len(reply.generated_tokens) for reply in replies.values())
        if written != batch * new_tokens:
            raise RuntimeError(f"{written} tokens came back, {batch * new_tokens} were requested")
    return seconds[1], batch * task.steps / (seconds[2] - seconds[1])


def limit(loaded: LoadedModel, model: Any, batch: int, task: Task) -> float | None:
    """Tokens per second if a step took as long as reading its bytes once; None if the bandwidth is unknown."""
    name = torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else ""
    speed = next((speed for card, speed in BYTES_PER_S.items() if card in name), None)
    if speed is None:
        return None
    tied = model.config.tie_word_embeddings
    looked_up = 0 if tied else model.get_input_embeddings().weight.nbytes  # a step reads only a few rows of it
    context = task.prompt_tokens + task.steps // 2
    kv = pool_shape(loaded, 1).bytes_per_block * context * batch
    return batch * speed / (loaded.weight_bytes - looked_up + kv)


def measure_own(shape: str, device: torch.device, task: Task) -> tuple[list[Figure], dict[str, dict[str, int]]]:
    """Figures of all variants, and estimated and measured memory."""
    model = random_model(shape, device, ATTENTION_NAME)
    pack_linears(model)
    loaded = wrap_model(model, device, time.monotonic())
    limits = {batch: limit(loaded, model, batch, task) for batch in task.batches}
    ways: dict[str, Way] = {}
    for variant in variants(loaded, task):
        used = loaded if variant.is_fused else replace(loaded, backbone=open_backbone(model.get_decoder()))
        ways[variant.name] = partial(decode, used, variant)
    return run_all(shape, ways, limits, task), compare_memory(loaded, config_of(shape))


def measure_peers(shape: str, device: torch.device, task: Task) -> list[Figure]:
    """transformers' figures for an unmodified model of the same shape."""
    model = random_model(shape, device, "sdpa")
    ways: dict[str, Way] = {"generate": partial(generate, model)}
    if device.type == "cuda":
        ways["continuous batching"] = partial(continuous, model)
    return run_all(shape, ways, dict.fromkeys(task.batches), task)


def run_all(shape: str, ways: dict[str, Way], limits: dict[int, float | None], task: Task) -> list[Figure]:
    """Measure every way at every batch size until the deadline."""
    figures = []
    for name, measure in ways.items():
        for batch in task.batches:
            figure = _measure(Figure(shape, name, batch), measure, limits[batch], task)
            print(json.dumps(asdict(figure)), flush=True)
            figures.append(figure)
    return figures


def _measure(empty: Figure, measure: Way, most: float | None, task: Task) -> Figure:
    shape, way, batch = empty.shape, empty.way, empty.batch
    if time.monotonic() > task.deadline_s:
        return Figure(shape, way, batch, fault="no time left")
    try:
        first_s, rate = measure(batch, task)
    except FAULTS as error:
        return Figure(shape, way, batch, fault=f"{type(error).__name__}: {error}"[:300])
    return Figure(shape, way, batch, rate, rate / most if most else None, first_s)


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
    began = time.monotonic()
    device = torch.device(options.device)
    figures, memory = [], {}
    for number, shape in enumerate(options.shapes, 1):
        # Each shape gets an equal part of the time plus what earlier ones left over; peers get a part of that.
        share, peers_part = options.limit_s / len(options.shapes), 0.0 if options.no_peers else PEERS_PART
        deadline = began + share * number
        task = Task(tuple(options.batches), options.prompt_tokens, options.steps, deadline - share * peers_part)
        with torch.inference_mode():
            found, memory[shape] = measure_own(shape, device, task)
            figures += found
            if not options.no_peers:
                figures += measure_peers(shape, device, replace(task, deadline_s=deadline))
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": _commit(),
        "task": {"prompt_tokens": options.prompt_tokens, "steps": options.steps},
        "seconds": time.monotonic() - began,
        "figures": [asdict(figure) for figure in figures],
        "memory": memory,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _commit() -> str:
    found = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=False)
    return found.stdout.strip()


if __name__ == "__main__":
    main()
