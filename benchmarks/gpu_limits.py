"""Limits of a card, and how near to them a prompt of 2000 tokens comes.

The byte limit of decoding is that of the card's data sheet. The arithmetic limit of a prompt is the number of its
operations over the speed of a large product of bfloat16 matrices, measured on the same card in the same run.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.decoding import Engine
from benchmarks.engine import random_prompt
from server.engine.blocks import Blocks
from server.messages import Sampling
from server.model.runner import Runner

DATA_SHEET = {  # bytes per second; the first name that is part of the card's
    "H200": 4.8e12,
    "H100 NVL": 3.9e12,
    "H100 PCIe": 2.0e12,
    "H100": 3.35e12,
    "A100": 2.0e12,
}
MATRIX_SIZE, COPIED_BYTES = 8192, 4 << 30
REPEATS = 20
FIRST_TOKENS, FIRST_REPEATS = 2000, 5


@dataclass(frozen=True, slots=True)
class Card:
    """Speeds of a device: of its data sheet, 0 if unknown, and measured."""

    name: str
    sheet_bytes_per_s: float
    flops: float  # of a bfloat16 product; a multiplication and an addition are two
    copy_bytes_per_s: float  # read and written, of a copy within the device


def measure_card(name: str, device: torch.device) -> Card:
    """Speeds of this device; on a CPU of small operands, as a self-test."""
    on_cuda = device.type == "cuda"
    size, num_bytes = (MATRIX_SIZE, COPIED_BYTES) if on_cuda else (128, 1 << 20)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    product_s = _seconds(lambda: torch.mm(left, right, out=product), device)
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _seconds(lambda: target.copy_(source), device)
    return Card(name, sheet_bytes_per_s(name), 2 * size**3 / product_s, 2 * num_bytes / copy_s)


def sheet_bytes_per_s(name: str) -> float:
    """The memory bandwidth of a card of this name by its data sheet; 0 if unknown."""
    return next((speed for card, speed in DATA_SHEET.items() if card in name), 0.0)


def prompt_operations(config: Any, tokens: int) -> int:
    """Operations of a prompt's forward pass: products of every token, causal attention, one row of logits."""
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    hidden, layers = config.hidden_size, config.num_hidden_layers
    weights = hidden * (2 * heads + 2 * kv_heads) * head_dim + 3 * hidden * config.intermediate_size
    pairs = tokens * (tokens + 1) // 2  # a token attends to itself and to those before
    attention = 4 * heads * head_dim * pairs  # scores, and their product with the values
    return layers * (2 * tokens * weights + attention) + 2 * hidden * config.vocab_size


def first_token(runner: Runner, config: Any, card: Card, block_size: int, tokens: int = FIRST_TOKENS) -> dict[str, Any]:
    """Seconds from a prompt's arrival to its first id, alone on the card, beside the arithmetic limit."""
    seconds = []
    for number in range(2 + FIRST_REPEATS):
        blocks = Blocks(runner.pool.num_blocks, block_size, caching=False)
        prompts = [random_prompt(tokens, number)]
        engine = Engine(runner, blocks, prompts, Sampling(2, temperature=0.0, ignore_eos=True), overlap=False)
        began = time.perf_counter()
        while engine.in_prefill:
            engine.step()
        seconds.append(time.perf_counter() - began)
        while engine.has_work:
            engine.step()
    first_s = statistics.median(seconds[2:])
    limit_s = prompt_operations(config, tokens) / card.flops
    return {"tokens": tokens, "first_s": first_s, "limit_s": limit_s, "times_limit": first_s / limit_s}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of one call."""
    found = []
    for _ in range(3):
        call()
        _synchronize(device)
        began = time.perf_counter()
        for _ in range(REPEATS):
            call()
        _synchronize(device)
        found.append((time.perf_counter() - began) / REPEATS)
    return statistics.median(found)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
