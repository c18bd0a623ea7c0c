"""Speed of the model runner alone, compared with transformers' generate() on the same weights in the same run.

    python -m benchmarks.engine /tmp/qwen3-0.6b [--threads 2] [--block-size 16] [--no-peer]

Figures are medians over the steps of one run; tokens per second over all streams. On a shared machine use --cpu-time,
which measures the CPU time of this process instead of wall time.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from server.messages import Sampling
from server.model.batch import Batch, Row, RowSampling
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings

Clock = Callable[[], float]
GREEDY = Sampling(max_tokens=1 << 20, temperature=0.0)
CHUNK_TOKENS = 2048


class Stream:
    """One sequence in its own contiguous KV blocks."""

    def __init__(self, prompt: list[int], first_block: int, num_blocks: int) -> None:
        self.prompt = prompt
        self.ids = list(prompt)
        self.blocks = list(range(first_block, first_block + num_blocks))
        self.num_computed = 0

    def row(self, limit: int = CHUNK_TOKENS) -> Row:
        """Return a row of the tokens not computed yet, at most `limit`."""
        ids = self.ids[self.num_computed : self.num_computed + limit]
        last = self.num_computed + len(ids) == len(self.ids)
        sampling = RowSampling(GREEDY, 0, self.prompt, self.ids[len(self.prompt) :]) if last else None
        return Row(ids, self.num_computed, self.blocks, int(last), sampling)


def step(runner: Runner, streams: list[Stream], clock: Clock = time.perf_counter) -> float:
    """Run one step of these streams and return its seconds."""
    began = clock()
    rows = [stream.row() for stream in streams]
    batch = Batch(tuple(rows))
    sampled = iter(runner.sample(runner.launch(batch), batch, None).read())
    for stream, row in zip(streams, rows, strict=True):
        stream.num_computed += len(row.token_ids)
        if row.num_logits:
            stream.ids.extend(next(sampled).token_ids)
    return clock() - began


def random_prompt(length: int, seed: int) -> list[int]:
    """Return ids of ordinary tokens."""
    return torch.randint(1000, 20_000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def measure(runner: Runner, prompt_tokens: int, streams: int, steps: int, clock: Clock) -> tuple[float, float]:
    """Return the seconds of one prefill, and decode tokens per second over all streams."""
    block_size = runner.pool.shape.block_size
    per_stream = -(-(prompt_tokens + steps + 2) // block_size)
    group = [Stream(random_prompt(prompt_tokens, i), i * (per_stream + 3), per_stream) for i in range(streams)]
    first = sum(step(runner, [stream], clock) for stream in group)
    times = [step(runner, group, clock) for _ in range(steps)]
    return first / streams, streams / statistics.median(times)


def measure_generate(model: Any, prompt_tokens: int, streams: int, steps: int, clock: Clock) -> float:
    """Return decode tokens per second of transformers' generate(); the prefill is subtracted by a second length."""
    ids = torch.tensor([random_prompt(prompt_tokens, i) for i in range(streams)])
    seconds = []
    for new_tokens in (1, 1 + steps):
        began = clock()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )
        seconds.append(clock() - began)
    return streams * steps / (seconds[1] - seconds[0])


def main() -> None:
    """Print one line for each number of streams and prompt length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    loaded = load(options.checkpoint, EngineSettings(), lambda fraction: None)
    print(f"threads {torch.get_num_threads()}, block size {options.block_size}, loaded in {loaded.load_s:.1f} s")
    clock = time.process_time if options.cpu_time else time.perf_counter
    runner = Runner(loaded, 32_768 // options.block_size, options.block_size)
    peer = None if options.no_peer else transformers.AutoModelForCausalLM.from_pretrained(options.checkpoint)
    for prompt_tokens, streams in ((128, 1), (2000, 1), (128, 8), (128, 16), (128, 32)):
        first_s, rate = measure(runner, prompt_tokens, streams, options.steps, clock)
        print(f"{streams:3d} x {prompt_tokens:4d}: first {first_s:.2f} s, decode {rate:.1f} tok/s", end="", flush=True)
        peer_rate = measure_generate(peer, prompt_tokens, streams, options.steps, clock) if peer else None
        print("" if peer_rate is None else f", generate {peer_rate:.1f} tok/s", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
