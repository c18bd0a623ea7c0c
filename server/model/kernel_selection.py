"""Selects the Triton kernels for a device at start-up: those that compile and agree with torch.

They are tested on the device itself, with the model's sizes and dtype; fused layer kernels must also be faster there. A
card, driver or compiler that cannot run them costs speed and a line in the log, never a wrong reply.
"""

import importlib.util
import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from server.model.attention.base import PoolShape
from server.model.attention.gpu import CudaKvPool, Kernels, TiledStep
from server.model.attention.prebuilt import use_prebuilt
from server.model.attention.step_plan import RowPlan
from server.model.attention.tiles import tile_sizes
from server.model.cpu.quantized import choose_product
from server.model.device import time_us
from server.model.layers.decoder import Backbone, CompactBackbone, OneRowStep, ResidualStream, open_backbone
from server.model.quantization.linear import Product, multiply_unpacked

if TYPE_CHECKING:
    from server.model.layers.one_row import OneRowModel  # imports Triton

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # for values of magnitude 1
BYTES_TOLERANCE = 5e-2  # what a cache of bytes adds: numbers of magnitude 4 are rounded to 1 / 32
POOL_BLOCKS = 64  # of the test pool
COMPARED_BLOCKS, COMPARED_BLOCK = 3, 16  # blocks, and tokens of one, before a step of one row
SMALL = 0.01  # magnitude of a hidden state
PROMPT_TOKENS = 2048
PROMPT_ROUNDS, PROMPT_GAIN = 5, 0.9  # timings vary by some percent: the kernels stay unless torch is faster by more


@dataclass(frozen=True, slots=True)
class Difference:
    """Largest difference between kernels and torch on the same random step."""

    largest: float
    allowed: float

    @property
    def is_small(self) -> bool:
        """Whether they agree; False for NaN."""
        return self.largest <= self.allowed

    def raise_if_large(self) -> None:
        """Raises RuntimeError unless they agree."""
        if not self.is_small:
            raise RuntimeError(f"results differ by {self.largest:.2g}")


def choose_kernels(shape: PoolShape, heads: int, device: torch.device) -> Kernels | None:
    """Attention kernels for a model with `heads` query heads on this device; None to use torch's attention."""
    if not _has_triton(device):
        return None
    with _log_failure("attention kernels"):
        from server.model.attention import triton_kernels

        compare_attention(triton_kernels, shape, heads, device).raise_if_large()
        return triton_kernels
    return None


def prefers_torch_for_prompts(kernels: Kernels, shape: PoolShape, heads: int, device: torch.device) -> bool:
    """Whether torch attends faster than the kernels for a long row that begins at position 0, and alike."""
    if device.type != "cuda" or shape.dtype not in (torch.bfloat16, torch.float16):
        return False
    count = -(-PROMPT_TOKENS // shape.block_size)
    layout, sizes, scaling = replace(shape, layers=1), tile_sizes(shape, heads), shape.head_dim**-0.5
    generator = torch.Generator(device).manual_seed(1)
    with _log_failure("prompts by torch's attention"), torch.inference_mode():
        query, key, value = (
            torch.randn((PROMPT_TOKENS, one, shape.head_dim), generator=generator, device=device).to(shape.dtype)
            for one in (heads, shape.kv_heads, shape.kv_heads)
        )
        calls = []
        for by_torch in (False, True):
            pool = CudaKvPool(layout, count, device, kernels, sizes, prompts_by_torch=by_torch)
            step = pool.arrange([RowPlan(PROMPT_TOKENS, 0, range(count))], {0: 0})
            calls.append(partial(step.attend, 0, query, key, value, scaling))
        allowed = TOLERANCE[shape.dtype] + (BYTES_TOLERANCE if shape.in_bytes else 0.0)
        Difference(float((calls[0]() - calls[1]()).abs().max()), allowed).raise_if_large()
        rounds = [[time_us(call) for call in calls] for _ in range(PROMPT_ROUNDS)]
        own_us, torch_us = map(min, zip(*rounds, strict=True))
        log.info("attention of a prompt of %d: %.0f us by kernels, %.0f us by torch", PROMPT_TOKENS, own_us, torch_us)
        return bool(torch_us < PROMPT_GAIN * own_us)
    return False


def choose_backbone(decoder: Any, device: torch.device) -> Backbone:
    """The backbone of a model on this device, with fused layer kernels where they make a step faster."""
    plain = open_backbone(decoder)
    if not isinstance(plain, CompactBackbone) or not _has_triton(device):
        return plain
    with _log_failure("fused layer kernels"):
        from server.model.layers import fused_triton

        fused = CompactBackbone(decoder, fused_triton)
        compare_layers(fused, plain).raise_if_large()
        fused_us, plain_us = _measure_us(fused, device), _measure_us(plain, device)
        log.info("fused layer kernels: a token takes %.0f us with them, %.0f us without", fused_us, plain_us)
        return fused if fused_us < plain_us else plain
    return plain


def choose_one_row(decoder: Any, head: Any, device: torch.device) -> OneRowStep | None:
    """The decode step of one row in fewer launches; None where the model or the device has none.

    Capturing times it beside the backbone and keeps the faster one (`decode_graphs.py`).
    """
    if not _has_triton(device):
        return None
    with _log_failure("kernels for steps of one row"):
        from server.model.layers.one_row import open_one_row

        one_row = open_one_row(decoder, head)
        if one_row is not None:
            compare_one_row(one_row, decoder, head).raise_if_large()
        return one_row
    return None


def choose_quantized_product(device: torch.device, kernels: CDLL | None, dtype: torch.dtype) -> Product:
    """The product of quantized layers on this device; `kernels`: the compiled ones of a CPU."""
    if not _has_triton(device):
        return choose_product(kernels)
    with _log_failure("products of few bits"):
        from server.model.quantization import triton_product

        Difference(triton_product.largest_difference(device, dtype), TOLERANCE[dtype]).raise_if_large()
        return triton_product.multiply
    return multiply_unpacked


def compare_attention(kernels: Kernels, shape: PoolShape, heads: int, device: torch.device) -> Difference:
    """Compare steps of decode, draft and prompt tokens between the kernels and torch's attention.

    These steps compile every variant of the kernels: contexts with and without splits, rows of one token, of few and of
    many, in tiles of every size.
    """
    block_size = shape.block_size
    layout = replace(shape, layers=1)
    plain = CudaKvPool(replace(layout, in_bytes=False), POOL_BLOCKS, device)
    pools = [plain]
    pools += [CudaKvPool(layout, POOL_BLOCKS, device, kernels, (tile,)) for tile in tile_sizes(shape, heads)]
    generator = torch.Generator(device).manual_seed(1)
    for part in (plain.keys, plain.values):
        part[0].normal_(generator=generator)
    slots = torch.arange((POOL_BLOCKS + 1) * block_size, dtype=torch.int32, device=device)
    for own in pools[1:]:
        kernels.write(plain.keys[0].flatten(0, 1), plain.values[0].flatten(0, 1), own.keys[0], own.values[0], slots)
    longest = 40 * block_size
    rows = [
        RowPlan(1, longest - 1, range(POOL_BLOCKS - 1, POOL_BLOCKS - 41, -1)),
        RowPlan(1, block_size, (3, 20)),
        RowPlan(5, block_size - 2, (5, 1)),
        RowPlan(4 * block_size, block_size // 2, (7, 9, 6, 2, 11)),
    ]
    size = (sum(row.num_tokens for row in rows), shape.head_dim)
    query, key, value = (
        torch.randn((size[0], count, size[1]), generator=generator, device=device).to(shape.dtype)
        for count in (heads, shape.kv_heads, shape.kv_heads)
    )
    differences = []
    for step in (rows, rows[:2], rows[1:2], rows[2:3]):
        new = slice(0, sum(row.num_tokens for row in step))
        with torch.inference_mode():
            expected, *found = [
                pool.arrange(step, {0: 0}).attend(0, query[new], key[new], value[new], size[1] ** -0.5)
                for pool in pools
            ]
            differences.append(torch.stack(found).sub_(expected).abs().max())
    allowed = TOLERANCE[shape.dtype] + (BYTES_TOLERANCE if shape.in_bytes else 0.0)
    return Difference(torch.stack(differences).max().item(), allowed)


def compare_layers(fused: CompactBackbone, plain: CompactBackbone) -> Difference:
    """Compare the first layer and the last norm on random hidden states, relative to the largest result."""
    weight = plain.norm.weight
    generator = torch.Generator(weight.device).manual_seed(1)
    count, head_dim = 5, plain.layers[0].head_dim
    sizes = ((count, len(weight)), (count, len(weight)), (count, 1, head_dim), (count, 1, head_dim))
    hidden, added, cos, sin = (
        torch.randn(size, generator=generator, device=weight.device).to(weight.dtype) for size in sizes
    )
    results = []
    with torch.inference_mode():
        for backbone in (fused, plain):
            stream = ResidualStream(hidden.clone(), backbone.ops)
            stream.added = added
            backbone.layers[0].forward(0, stream, (cos, sin), StubAttention())
            results.append(torch.cat((stream.normed(backbone.norm), stream.hidden)).float())
    largest = (results[0] - results[1]).abs().max() / results[1].abs().max()
    return Difference(largest.item(), TOLERANCE[weight.dtype])


def compare_one_row(one_row: "OneRowModel", decoder: Any, head: Any) -> Difference:
    """Compare the first layer and the head on a random hidden state behind random keys and values.

    Relative to the norm of the result. After all layers of a model in bfloat16 their roundings have added up to more
    than a fault makes.
    """
    from server.model.attention import triton_kernels

    plain = CompactBackbone(decoder)
    weight = plain.norm.weight
    device, dtype = weight.device, weight.dtype
    generator = torch.Generator(device).manual_seed(1)
    shape = PoolShape(COMPARED_BLOCK, 1, decoder.config.num_key_value_heads, plain.layers[0].head_dim, dtype)
    pool = CudaKvPool(shape, COMPARED_BLOCKS, device, triton_kernels)
    position = COMPARED_BLOCKS * COMPARED_BLOCK - 2
    step = pool.arrange([RowPlan(1, position, range(COMPARED_BLOCKS))], {0: 0})
    assert isinstance(step, TiledStep)
    positions = torch.full((1,), position, dtype=torch.int32, device=device)
    # A small one: what the layer adds to it is most of the result.
    hidden = SMALL * torch.randn((1, len(weight)), generator=generator, device=device).to(dtype)
    for part in (pool.keys[0], pool.values[0]):
        part.copy_(torch.randn(part.shape, generator=generator, device=device))
    with torch.inference_mode():
        own = hidden[0].clone()
        one_row.advance(0, own, positions, step)
        found = own.float(), one_row.logits(own).float()
        stream = ResidualStream(hidden.clone(), plain.ops)
        plain.layers[0].forward(0, stream, plain.angles(hidden, positions), step)
        normed = stream.normed(plain.norm)
        expected = stream.hidden[0].float(), head(normed)[0].float()
    norms = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    return Difference(max(norms), TOLERANCE[dtype])


class StubAttention:
    """Stands in for attention: a token depends only on its own query, key and value."""

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `AttentionStep.attend`; every head of query, key and value influences the result."""
        group = query.shape[1] // key.shape[1]
        return query + (key + value).unsqueeze(2).expand(-1, -1, group, -1).reshape(query.shape)


def _measure_us(backbone: Backbone, device: torch.device) -> float:
    """Microseconds of a captured step of one token, without attention."""
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        backbone(ids, ids, StubAttention(), None)
        with torch.cuda.graph(graph):
            backbone(ids, ids, StubAttention(), None)
        return time_us(graph.replay)


def _has_triton(device: torch.device) -> bool:
    """Whether Triton is installed, which only torch for CUDA depends on."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


@contextmanager
def _log_failure(kernels: str) -> Iterator[None]:
    """Log that these kernels are off where they fail to compile, run or agree.

    No C compiler, no driver, a card that is too old and too little shared memory raise different exceptions.
    """
    from triton.errors import TritonError

    use_prebuilt()
    try:
        yield
    except (TritonError, RuntimeError, OSError, ImportError, AssertionError, subprocess.SubprocessError) as error:
        log.warning("%s are off: %s", kernels, _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
