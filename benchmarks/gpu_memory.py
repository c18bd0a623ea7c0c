"""Compares the memory that `toolwire plan` estimates for a loaded model with what the device reports."""

from typing import Any

import torch
import transformers

from server.memory.budget import Demand, activation_bytes
from server.memory.headers import Tensor, weight_bytes
from server.memory.shape import read_shape
from server.model.attention.mapped_memory import mapped_bytes
from server.model.loading.loaded_model import LoadedModel
from server.model.profile import StepSize, measure_step
from server.model.runner import Runner

BLOCK_SIZE, BLOCKS = 16, 256
MOST_TOKENS, MOST_ROWS = 2048, 256  # the settings' defaults
FORMAT_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def compare_memory(loaded: LoadedModel, config: Any) -> dict[str, dict[str, int]]:
    """Bytes of weights, of the largest step and of a pool: estimated and measured."""
    shape = read_shape(config.to_dict())
    dtype = str(loaded.dtype).removeprefix("torch.")
    tokens, rows = (MOST_TOKENS, MOST_ROWS) if loaded.device.type == "cuda" else (64, 4)
    demand = Demand(dtype, max_batch_tokens=tokens, max_running=rows, block_size=BLOCK_SIZE)
    names = FORMAT_NAMES[loaded.dtype]
    # Never loaded from a file, so the headers are those that saving would write.
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(config)
    tensors = [Tensor(name, names, tuple(part.shape)) for name, part in skeleton.named_parameters()]
    step = StepSize(tokens, rows, BLOCK_SIZE, rows if loaded.device.type == "cuda" else 0)
    return {
        "weights": {
            "estimated": weight_bytes(tensors, dtype=dtype, quantize="none", tied=shape.tied),
            "measured": loaded.weight_bytes,
        },
        "largest step": {"estimated": activation_bytes(shape, demand), "measured": measure_step(loaded, step)},
        "pool": {
            "estimated": BLOCKS * BLOCK_SIZE * shape.kv_token_bytes(loaded.dtype.itemsize),
            "measured": _pool_bytes(loaded),
        },
    }


def _pool_bytes(loaded: LoadedModel) -> int:
    if loaded.device.type != "cuda":
        pool = Runner(loaded, BLOCKS, BLOCK_SIZE).pool
        return sum(part.nbytes for part in (*pool.keys, *pool.values))

    def taken() -> int:
        return torch.cuda.memory_allocated(loaded.device) + mapped_bytes(loaded.device)

    before = taken()
    pool = Runner(loaded, BLOCKS, BLOCK_SIZE).pool
    num_bytes = taken() - before
    del pool
    return num_bytes
