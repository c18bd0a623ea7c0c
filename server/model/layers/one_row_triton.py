"""Triton kernels for the decode step of one row, which is as fast as its weights are read.

Products of one token with what comes before and after them: the norm of the input; gate and activation, the bias, or
the sum with the residual stream. A layer takes seven launches: norm and projections, rotation and writing of keys and
values, attention with its combination, output projection, norm and gate and up projections, down projection.

Where the device allows it (compute capability 9.0), a kernel is launched while the one before it still runs and reads
its first weights meanwhile: programmatic dependent launch, CUDA's programming guide. Only weights are read before
`gdc_wait`, since several earlier kernels may still run. Sums are float32.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.model.attention.tiles import NUM_PROCESSORS
from server.model.attention.triton_kernels import wait_for_inputs
from server.model.device import launches_early

MANY_OUTPUTS = 1 << 15  # as of an output head


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program of a product reads at a time: `inputs` weights of each of `outputs` lines, by `warps`.

    With `programs`, whole lines are read, by that number of programs for each of the card's processors, and `inputs` is
    no less than the length of a line.
    """

    outputs: int
    inputs: int
    warps: int
    programs: int = 0


@triton.jit
def _line_product_kernel(
    hidden, norm, weight, bias, result, inputs, outputs, epsilon,
    OUTPUTS: tl.constexpr, WIDTH: tl.constexpr, NORMS: tl.constexpr, HAS_BIAS: tl.constexpr, IS_GATED: tl.constexpr,
    ADDS: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """As `_token_product_kernel`; a program keeps all inputs and takes every n-th tile of whole lines of weights."""
    output, at = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, WIDTH)
    step, own = tl.num_programs(0) * OUTPUTS, at < inputs
    line = weight + at[None, :]
    second = line + outputs.to(tl.int64) * inputs
    inside = (output < outputs)[:, None] & own[None, :]
    tile = tl.load(line + output.to(tl.int64)[:, None] * inputs, mask=inside, other=0.0)
    other = tile
    if IS_GATED:
        other = tl.load(second + output.to(tl.int64)[:, None] * inputs, mask=inside, other=0.0)
    wait_for_inputs(IS_EARLY)
    numbers = tl.load(hidden + at, mask=own, other=0.0).to(tl.float32)
    if NORMS:
        scale = tl.rsqrt(tl.sum(numbers * numbers, 0) / inputs + epsilon)
        numbers *= scale * tl.load(norm + at, mask=own, other=0.0).to(tl.float32)
    for _ in range(tl.program_id(0) * OUTPUTS, outputs, step):
        # The next weights are requested before these are used.
        following = (output + step).to(tl.int64)[:, None] * inputs
        inside = (output + step < outputs)[:, None] & own[None, :]
        next_tile = tl.load(line + following, mask=inside, other=0.0)
        next_other = next_tile
        if IS_GATED:
            next_other = tl.load(second + following, mask=inside, other=0.0)
        is_output, total = output < outputs, tl.sum(tile.to(tl.float32) * numbers[None, :], 1)
        if HAS_BIAS:
            total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)
        if IS_GATED:
            total = total * tl.sigmoid(total) * tl.sum(other.to(tl.float32) * numbers[None, :], 1)
        if ADDS:
            total += tl.load(result + output, mask=is_output, other=0.0).to(tl.float32)
        tl.store(result + output, total.to(result.dtype.element_ty), mask=is_output)
        tile, other, output = next_tile, next_other, output + step


@triton.jit
def _token_product_kernel(
    hidden, norm, weight, bias, result, inputs, outputs, epsilon,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, NORMS: tl.constexpr, HAS_BIAS: tl.constexpr, IS_GATED: tl.constexpr,
    ADDS: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Programs: outputs. With IS_GATED `weight` has the gates' lines, then as many of the values that they multiply."""
    output, at = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, INPUTS)
    is_output = output < outputs
    line = weight + output.to(tl.int64)[:, None] * inputs + at[None, :]
    second = line + outputs.to(tl.int64) * inputs
    inside = is_output[:, None] & (at < inputs)[None, :]
    tile = tl.load(line, mask=inside, other=0.0)
    other = tile
    if IS_GATED:
        other = tl.load(second, mask=inside, other=0.0)
    wait_for_inputs(IS_EARLY)
    sums = tl.zeros([OUTPUTS, INPUTS], tl.float32)
    other_sums = tl.zeros([OUTPUTS, INPUTS], tl.float32)
    squares = tl.zeros([INPUTS], tl.float32)
    for first in range(0, inputs, INPUTS):
        own = first + at < inputs
        numbers = tl.load(hidden + first + at, mask=own, other=0.0).to(tl.float32)
        # The next weights are requested before these are used.
        inside = is_output[:, None] & (first + INPUTS + at < inputs)[None, :]
        next_tile = tl.load(line + first + INPUTS, mask=inside, other=0.0)
        next_other = next_tile
        if IS_GATED:
            next_other = tl.load(second + first + INPUTS, mask=inside, other=0.0)
        if NORMS:
            squares += numbers * numbers
            numbers *= tl.load(norm + first + at, mask=own, other=0.0).to(tl.float32)
        sums += tile.to(tl.float32) * numbers[None, :]
        if IS_GATED:
            other_sums += other.to(tl.float32) * numbers[None, :]
        tile, other = next_tile, next_other
    total = tl.sum(sums, 1)
    scale = 1.0
    if NORMS:
        scale = tl.rsqrt(tl.sum(squares, 0) / inputs + epsilon)
        total *= scale
    if HAS_BIAS:
        total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)
    if IS_GATED:
        total = total * tl.sigmoid(total) * (tl.sum(other_sums, 1) * scale)
    if ADDS:
        total += tl.load(result + output, mask=is_output, other=0.0).to(tl.float32)
    tl.store(result + output, total.to(result.dtype.element_ty), mask=is_output)


@triton.jit
def _rotate_and_write_kernel(
    projected, weight, cos, sin, positions, slots, rotated, keys, values, epsilon,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, NORMS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Programs: query, key and value heads. Keys and values go to their slot. `cos` and `sin`: [positions, HALF]."""
    head, at = tl.program_id(0), tl.arange(0, WIDTH)
    own = at < HALF
    wait_for_inputs(IS_EARLY)
    source = projected + head * 2 * HALF + at
    first, second = tl.load(source, mask=own, other=0.0), tl.load(source + HALF, mask=own, other=0.0)
    slot, target = tl.load(slots).to(tl.int64) * KV_HEADS * 2 * HALF, rotated + head * 2 * HALF + at
    if head < HEADS + KV_HEADS:
        low, high = first.to(tl.float32), second.to(tl.float32)
        if NORMS:
            scale = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / (2 * HALF) + epsilon)
            line = weight + head * 2 * HALF + at
            low = low * scale * tl.load(line, mask=own, other=0.0).to(tl.float32)
            high = high * scale * tl.load(line + HALF, mask=own, other=0.0).to(tl.float32)
        angle = tl.load(positions).to(tl.int64) * HALF + at
        cosine = tl.load(cos + angle, mask=own, other=0.0).to(tl.float32)
        sine = tl.load(sin + angle, mask=own, other=0.0).to(tl.float32)
        first, second = (low * cosine - high * sine).to(first.dtype), (high * cosine + low * sine).to(first.dtype)
        if head >= HEADS:
            target = keys + slot + (head - HEADS) * 2 * HALF + at
    else:
        target = values + slot + (head - HEADS - KV_HEADS) * 2 * HALF + at
    tl.store(target, first, mask=own)
    tl.store(target + HALF, second, mask=own)


def product(
    hidden: Tensor,
    weight: Tensor,
    result: Tensor,
    *,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    bias: Tensor | None = None,
    is_gated: bool = False,
    adds: bool = False,
    tile: Tile | None = None,
) -> None:
    """Multiply one token's `hidden` [inputs] by `weight` [outputs, inputs] into `result` [outputs].

    `norm`: weights of the RMS norm of `hidden`. `is_gated`: the first half of the outputs are gates of the second, and
    the result is silu(gate) * value, half as long. `adds`: the result is added to what `result` holds.
    """
    outputs, inputs = weight.shape[0] // (1 + is_gated), weight.shape[1]
    tile = tile or choose_tile(outputs, inputs, is_gated)
    is_early = launches_early(hidden.device)
    programs, kernel = triton.cdiv(outputs, tile.outputs), _token_product_kernel
    if tile.programs:
        programs, kernel = min(programs, tile.programs * num_processors(hidden.device)), _line_product_kernel
    kernel[(programs,)](
        hidden, hidden if norm is None else norm, weight, hidden if bias is None else bias, result, inputs, outputs,
        epsilon, tile.outputs, tile.inputs, norm is not None, bias is not None, is_gated, adds, is_early,
        num_warps=tile.warps, launch_pdl=is_early,
    )  # fmt: skip


def rotate_and_write(
    projected: Tensor,
    norms: Tensor | None,
    epsilon: float,
    angles: tuple[Tensor, Tensor],
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Norm and rotate one token's queries and keys; keys and values go to the cache, queries are returned.

    projected [heads + 2 * kv_heads, head_dim], contiguous; norms [heads + kv_heads, head_dim]; angles: cos and sin of
    every position, [positions, head_dim / 2]; keys and values [num_blocks, block_size, kv_heads, head_dim].
    """
    kv_heads, head_dim = keys.shape[2:]
    heads = projected.shape[0] - 2 * kv_heads
    rotated = torch.empty((heads, head_dim), dtype=projected.dtype, device=projected.device)
    is_early = launches_early(projected.device)
    _rotate_and_write_kernel[(projected.shape[0],)](
        projected, projected if norms is None else norms, *angles, positions, slots, rotated, keys, values, epsilon,
        heads, kv_heads, head_dim // 2, triton.next_power_of_2(head_dim // 2), norms is not None, is_early,
        num_warps=1, launch_pdl=is_early,
    )  # fmt: skip
    return rotated


def choose_tile(outputs: int, inputs: int, is_gated: bool) -> Tile:
    """The tile for a product. Those of the shapes of Qwen3-0.6B and 8B were the fastest of some twenty on an H200."""
    if inputs <= 1024:
        if is_gated:
            return Tile(8, 1024, 8, 2)
        return Tile(4, 1024, 4, 8) if outputs > MANY_OUTPUTS else Tile(8, 512, 4)
    if inputs <= 2048:
        return Tile(4, 2048, 8)
    if inputs <= 4096:
        return Tile(1, 4096, 4, 8) if is_gated else Tile(4, 4096, 8, 2)
    return Tile(2, 1024, 4) if is_gated else Tile(8, 1024, 8)


@cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of the card; as many as an H100's where there is none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else NUM_PROCESSORS
