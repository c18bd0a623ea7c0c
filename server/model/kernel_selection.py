"""Which Triton kernels serve on a device: those that compile there and agree with what torch computes.

They are tried at start, on this card, with this model's sizes and dtype; those between the products must be faster
there, too. A card, driver or compiler that cannot run them costs speed and a line in the log, never a wrong reply.
"""

import importlib.util
import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from server.model.attention.base import PoolShape
from server.model.attention.gpu import CudaKvPool, Kernels
from server.model.attention.prebuilt import use_prebuilt
from server.model.attention.step_plan import RowPlan
from server.model.attention.tiles import tile_sizes
from server.model.layers.decoder import Backbone, CompactBackbone, ResidualStream, open_backbone

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # of values of the order of 1
POOL_BLOCKS = 64  # of the pool that they are tried on
REPLAYS = 20  # that a step's time is taken of


@dataclass(frozen=True, slots=True)
class Difference:
    """How far kernels were from torch on the same random step."""

    largest: float
    allowed: float

    @property
    def is_small(self) -> bool:
        """Whether they agree; NaN does not."""
        return self.largest <= self.allowed

    def raise_if_large(self) -> None:
        """Raises RuntimeError unless they agree."""
        if not self.is_small:
            raise RuntimeError(f"they are off by {self.largest:.2g}")


def choose_kernels(shape: PoolShape, heads: int, device: torch.device) -> Kernels | None:
    """The kernels for a model with so many query heads on this device; None where the gathering attention serves."""
    if not _has_triton(device):
        return None
    with _log_failure("attention gathers keys and values"):
        from server.model.attention import triton_kernels

        compare_attention(triton_kernels, shape, heads, device).raise_if_large()
        return triton_kernels
    return None


def choose_backbone(decoder: Any, device: torch.device) -> Backbone:
    """The decoder of a model on this device, with kernels between its products where a step is faster with them."""
    plain = open_backbone(decoder)
    if not isinstance(plain, CompactBackbone) or not _has_triton(device):
        return plain
    with _log_failure("torch computes what is between the products"):
        from server.model.layers import fused_triton

        fused = CompactBackbone(decoder, fused_triton)
        compare_layers(fused, plain).raise_if_large()
        took_us, plain_us = _measure_us(fused, device), _measure_us(plain, device)
        log.info("kernels between the products: a token takes %.0f us with them, %.0f without", took_us, plain_us)
        return fused if took_us < plain_us else plain
    return plain


def compare_attention(kernels: Kernels, shape: PoolShape, heads: int, device: torch.device) -> Difference:
    """Steps of decoding, drafted and prompt tokens through the kernels and through torch's attention.

    Every form of the kernels is compiled by them: contexts that are cut into shares and others, rows of one token, of
    few and of many, in tiles of every size.
    """
    block_size = shape.block_size
    layout = PoolShape(block_size, 1, shape.kv_heads, shape.head_dim, shape.dtype)
    plain = CudaKvPool(layout, POOL_BLOCKS, device)
    pools = [plain]
    pools += [CudaKvPool(layout, POOL_BLOCKS, device, kernels, (tile,)) for tile in tile_sizes(shape, heads)]
    generator = torch.Generator(device).manual_seed(1)
    for part in (plain.keys, plain.values):
        part[0].normal_(generator=generator)
    for own in pools[1:]:
        own.keys[0].copy_(plain.keys[0])
        own.values[0].copy_(plain.values[0])
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
    return Difference(torch.stack(differences).max().item(), TOLERANCE[shape.dtype])


def compare_layers(fused: CompactBackbone, plain: CompactBackbone) -> Difference:
    """The first layer of both on random hidden states, and the norm behind all; relative to the largest result."""
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


class StubAttention:
    """In the place of attention: each token has itself, and nothing before it."""

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `paged.AttentionStep.attend`, of what every head of queries, keys and values makes a difference to."""
        group = query.shape[1] // key.shape[1]
        return query + (key + value).unsqueeze(2).expand(-1, -1, group, -1).reshape(query.shape)


def _measure_us(backbone: Backbone, device: torch.device) -> float:
    """Microseconds that a token takes in a recorded step, attention left out."""
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        backbone(ids, ids, StubAttention(), None)
        with torch.cuda.graph(graph):
            backbone(ids, ids, StubAttention(), None)
        graph.replay()
        begin.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return 1000 * milliseconds / REPLAYS


def _has_triton(device: torch.device) -> bool:
    """It is part of torch for CUDA alone."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


@contextmanager
def _log_failure(instead: str) -> Iterator[None]:
    """Tell the log what happens instead where kernels do not run.

    No C compiler, no driver, a card that is too old, too little shared memory: each says so in its own way.
    """
    from triton.errors import TritonError

    use_prebuilt()
    try:
        yield
    except (TritonError, RuntimeError, OSError, ImportError, AssertionError, subprocess.SubprocessError) as error:
        log.warning("%s: the kernels do not serve here: %s", instead, _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
