"""Decoding with LoRA adapters: eight rows of four adapters against eight rows of the model alone.

    python -m benchmarks.adapters CHECKPOINT [--rank 16] [--rounds 5] [--steps 24] [--threads 0] [--cpu-time]

CHECKPOINT is a folder. Adapters of random numbers for every linear layer are written to a temporary folder. Both cases
use one loaded model; rounds alternate, and the medians of their tokens a second are compared.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from server.adapter_folder import CONFIG, WEIGHTS
from server.messages import Sampling
from server.model.adapters.weights import read_adapter
from server.model.batch import Batch, Row, RowSampling
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings

ROWS, ADAPTERS = 8, 4
BLOCK_SIZE = 32
PROMPT_TOKENS = 64
SAMPLING = Sampling(max_tokens=1 << 20, temperature=0.0)
BAR = 0.8
Clock = Callable[[], float]


def write_adapter(folder: Path, loaded: LoadedModel, rank: int, seed: int) -> Path:
    """An adapter of every linear layer of a model, with small random numbers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for part, size in loaded.targets.items():
        name = f"base_model.model.model.{part}"
        for side, shape in (("A", (rank, size.inputs)), ("B", (size.outputs, rank))):
            factor = 0.02 * torch.randn(shape, generator=generator)
            tensors[f"{name}.lora_{side}.weight"] = factor.to(torch.bfloat16)
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS)
    return folder


def measure(runner: Runner, adapters: Sequence[int], steps: int, clock: Clock = time.perf_counter) -> float:
    """Tokens a second of decoding rows with these adapters, behind prompts that are not counted."""
    blocks = 1 + (PROMPT_TOKENS + steps + 1) // BLOCK_SIZE
    tables = [range(index * blocks, (index + 1) * blocks) for index in range(len(adapters))]
    sampling = RowSampling(SAMPLING, 0, [], [])
    ids = [[1 + (7 * index + token) % 1000 for token in range(PROMPT_TOKENS)] for index in range(len(adapters))]
    start = 0
    began_s = 0.0
    for step in range(steps + 1):
        if step == 1:
            began_s = clock()
        slots = range(len(adapters)) if runner.states is not None else [None] * len(adapters)
        batch = Batch(
            tuple(
                Row(own, start, table, 1, sampling, slot, adapter=adapter)
                for own, table, slot, adapter in zip(ids, tables, slots, adapters, strict=True)
            )
        )
        start += len(ids[0])
        sampled = runner.sample(runner.launch(batch), batch, None).read()
        ids = [list(one.token_ids) for one in sampled]
    return steps * len(adapters) / (clock() - began_s)


def main() -> None:
    """Print both rates, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of all threads, for a busy machine")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize", default="none")
    arguments = parser.parse_args()
    settings = EngineSettings(dtype=arguments.dtype, quantize=arguments.quantize, threads=arguments.threads)
    loaded = load(arguments.checkpoint, settings, lambda fraction: None)
    blocks = ROWS * (2 + (PROMPT_TOKENS + arguments.steps + 1) // BLOCK_SIZE)
    runner = Runner(loaded, blocks, BLOCK_SIZE, ROWS if loaded.recurrent else 0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, ADAPTERS + 1):
            own = write_adapter(Path(folder) / str(number), loaded, arguments.rank, number)
            runner.add_adapter(number, loaded.backbone.adapt(read_adapter(own, loaded.targets, loaded.dtype)))
    cases = {
        f"{ROWS} rows of the model": [0] * ROWS,
        f"{ROWS} rows of {ADAPTERS} adapters": [1 + index % ADAPTERS for index in range(ROWS)],
        f"{ROWS} rows of one adapter": [1] * ROWS,
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for adapters in cases.values():
        measure(runner, adapters, 2)  # memory is touched, threads are started
    for _ in range(arguments.rounds):
        for name, adapters in cases.items():
            clock = time.process_time if arguments.cpu_time else time.perf_counter
            rates[name].append(measure(runner, adapters, arguments.steps, clock))
    base, *others = (statistics.median(found) for found in rates.values())
    print(f"{arguments.checkpoint}, rank {arguments.rank}, {loaded.dtype}, {torch.get_num_threads()} threads")
    for name, rate in zip(rates, (base, *others), strict=True):
        print(f"{name:<24} {rate:8.1f} tokens/s   {rate / base:5.2f} of the model's (the bar is {BAR})")


if __name__ == "__main__":
    main()
