"""Which attention kernels serve on a device: those that compile there and agree with torch's own attention.

They are tried at start, on this card, with this model's heads and dtype. A card, driver or compiler that cannot run
them costs speed and a line in the log, never a wrong reply.
"""

import importlib.util
import logging
import subprocess
from dataclasses import dataclass

import torch

from server.model.paged import PoolShape
from server.model.paged_cuda import CudaKvPool, Kernels
from server.model.plan import RowPlan

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # of values of the order of 1
BLOCKS = 64  # of the pool that they are tried on


@dataclass(frozen=True, slots=True)
class Difference:
    """How far kernels were from torch's attention on the same random step."""

    largest: float
    allowed: float

    @property
    def is_small(self) -> bool:
        """Whether they agree; NaN does not."""
        return self.largest <= self.allowed


def choose_kernels(shape: PoolShape, heads: int, device: torch.device) -> Kernels | None:
    """The kernels for a model with so many query heads on this device; None where the gathering attention serves."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    # Only where they are used: Triton is part of torch for CUDA alone.
    from triton.errors import TritonError

    from server.model import paged_triton

    try:
        difference = compare(paged_triton, shape, heads, device)
    # No C compiler, a card that is too old, too little shared memory: each says so in its own way.
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        log.warning("attention gathers keys and values: the kernels do not run here: %s", _first_line(error))
        return None
    if not difference.is_small:
        log.warning("attention gathers keys and values: the kernels are off by %.2g here", difference.largest)
        return None
    return paged_triton


def compare(kernels: Kernels, shape: PoolShape, heads: int, device: torch.device) -> Difference:
    """One step of decoding, drafted and prompt tokens through the kernels and through torch's attention."""
    block_size = shape.block_size
    layout = PoolShape(block_size, 1, shape.kv_heads, shape.head_dim, shape.dtype)
    plain, own = CudaKvPool(layout, BLOCKS, device), CudaKvPool(layout, BLOCKS, device, kernels)
    generator = torch.Generator(device).manual_seed(1)
    for mine, others in ((own.keys[0], plain.keys[0]), (own.values[0], plain.values[0])):
        others.normal_(generator=generator)
        mine.copy_(others)
    longest = 40 * block_size
    rows = [
        RowPlan(1, longest - 1, range(BLOCKS - 1, BLOCKS - 41, -1)),
        RowPlan(1, block_size, (3, 20)),
        RowPlan(5, block_size - 2, (5, 1)),
        RowPlan(4 * block_size, block_size // 2, (7, 9, 6, 2, 11)),
    ]
    size = (sum(row.num_tokens for row in rows), shape.head_dim)
    query, key, value = (
        torch.randn((size[0], count, size[1]), generator=generator, device=device).to(shape.dtype)
        for count in (heads, shape.kv_heads, shape.kv_heads)
    )
    with torch.inference_mode():
        results = [pool.arrange(rows, {0: 0}).attend(0, query, key, value, size[1] ** -0.5) for pool in (plain, own)]
    return Difference((results[0] - results[1]).abs().max().item(), TOLERANCE[shape.dtype])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
