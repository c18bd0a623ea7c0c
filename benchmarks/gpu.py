"""Decode speed on a GPU in one run of under ten minutes: attention variants, graphs on and off, beside transformers.

    python -m benchmarks.gpu [--shapes 0.6B 8B] [--batches 1 8 64 256] [--limit-s 540] [--out FILE]

Weights are random and made on the device; nothing is read from a disk. Each figure is tokens per second over all
streams (medians of steps) and, where the card's bandwidth is known, its share of the byte limit: what would be reached
if a step took as long as reading the weights and the keys and values once. What fails is recorded with its reason,
what found no time left as well. On a CPU (--device cpu --shapes tiny) the same code runs, as a test of itself.
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
PEERS_PART = 0.35  # of the time; our variants stand in the order in which they matter
BYTES_PER_S = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12}  # of the cards' data sheets
FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, ImportError, AssertionError)


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured: streams of so many prompt tokens, decoded for so many steps."""

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
    is_fused: bool = True  # kernels between the products, where they are in use
    is_sampled: bool = False  # as Qwen3's card recommends for replies without thinking; else greedy
    ahead: bool = False  # each step launched before the one before it is read, as the engine does on a GPU


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement; `fault` says why there is none."""

    shape: str
    way: str
    batch: int
    tok_per_s: float | None = None
    share_of_limit: float | None = None
    first_s: float | None = None  # of all prompts
    fault: str | None = None


def random_model(shape: str, device: torch.device, attention: str) -> Any:
    """A model of this shape with random bfloat16 weights, made on the device."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config_of(shape), dtype=torch.bfloat16, attn_implementation=attention
        )
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return model.train(False).requires_grad_(False)


def variants(loaded: LoadedModel, task: Task) -> list[Variant]:
    """The ways that this device has, what matters most first."""
    gather = Variant("gather", None, BLOCK_TOKENS), Variant("gather ahead", None, BLOCK_TOKENS, ahead=True)
    if loaded.device.type != "cuda":
        return list(gather)
    found: list[Variant] = []
    kernels = choose_kernels(pool_shape(loaded, BLOCK_TOKENS), loaded.kv.heads, loaded.device)
    if kernels is not None:
        triton = Variant("triton graphs ahead", kernels, BLOCK_TOKENS, graphs=True, ahead=True)
        found += [triton, replace(triton, name="triton graphs ahead, unfused", is_fused=False)]
        found.append(replace(triton, name="triton graphs ahead, sampled", is_sampled=True))
    if reads_block_tables():
        longest = task.prompt_tokens + num_ids_of(task, max(task.batches))
        varlen = VarlenKernels(-(-longest // PAGE_TOKENS))
        found.append(Variant("varlen graphs ahead", varlen, PAGE_TOKENS, graphs=True, ahead=True))
        found.append(Variant("varlen", varlen, PAGE_TOKENS))
    if kernels is not None:
        found += [replace(triton, name="triton graphs", ahead=False), Variant("triton", kernels, BLOCK_TOKENS)]
    return found + list(gather)


def num_ids_of(task: Task, batch: int) -> int:
    """Ids that a stream may write: the first streams write while the last prompts are computed."""
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
    engine = Engine(runner, blocks, prompts, sampling, ahead=variant.ahead)
    began = time.perf_counter()
    while engine.in_prefill:
        engine.step()
    first_s = time.perf_counter() - began
    times = [engine.step() for _ in range(task.steps)]
    assert engine.num_running == batch, "every stream was in every step"
    return first_s, batch / statistics.median(times)


def generate(model: Any, batch: int, task: Task) -> tuple[float, float]:
    """transformers' generate(): two lengths, so that the prompts drop out."""
    ids = torch.tensor([random_prompt(task.prompt_tokens, i) for i in range(batch)], device=model.device)
    seconds = []
    for new_tokens in (1, 1, 1 + task.steps):  # the first warms up
        began = time.perf_counter()
        limits = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **limits)[0, -1].item()
        seconds.append(time.perf_counter() - began)
    return seconds[1], batch * task.steps / (seconds[2] - seconds[1])


def continuous(model: Any, batch: int, task: Task) -> tuple[float, float]:
    """transformers' continuous batching: two lengths again, its start and its prompts drop out."""
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
            raise RuntimeError(f"{written} tokens came back, {batch * new_tokens} were asked for")
    return seconds[1], batch * task.steps / (seconds[2] - seconds[1])


def limit(loaded: LoadedModel, model: Any, batch: int, task: Task) -> float | None:
    """Tokens per second if a step took as long as reading its bytes once; None on a device of unknown bandwidth."""
    name = torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else ""
    speed = next((speed for card, speed in BYTES_PER_S.items() if card in name), None)
    if speed is None:
        return None
    tied = model.config.tie_word_embeddings
    looked_up = 0 if tied else model.get_input_embeddings().weight.nbytes  # of which a step reads a few rows
    context = task.prompt_tokens + task.steps // 2
    kv = pool_shape(loaded, 1).bytes_per_block * context * batch
    return batch * speed / (loaded.weight_bytes - looked_up + kv)


def measure_own(shape: str, device: torch.device, task: Task) -> tuple[list[Figure], dict[str, dict[str, int]]]:
    """Our figures, and the comparison of the model's memory with the plan."""
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
    """transformers' figures on a model of the same shape, as it comes."""
    model = random_model(shape, device, "sdpa")
    ways: dict[str, Way] = {"generate": partial(generate, model)}
    if device.type == "cuda":
        ways["continuous batching"] = partial(continuous, model)
    return run_all(shape, ways, dict.fromkeys(task.batches), task)


def run_all(shape: str, ways: dict[str, Way], limits: dict[int, float | None], task: Task) -> list[Figure]:
    """Every way at every batch, until the time is up."""
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
        # Each shape gets its share of the time, what earlier ones left included, and its peers a part of it.
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
