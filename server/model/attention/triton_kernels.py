"""Paged attention as Triton kernels that read keys and values in place, block by block.

    keys, values  [num_blocks, block_size, kv_heads, head_dim], the layout of gpu.py
    bytes         of each block [block_size, kv_heads, head_dim], then their scales [block_size, kv_heads] in float32

One program computes one tile (a few consecutive tokens of one row, all query heads of one KV head) over one split of
its context. Where contexts are split, so that a few rows occupy the whole card, a second kernel combines the splits by
their log-sum-exp, as FlashDecoding does. Products and sums are accumulated in float32.

The kernels read row lengths from `Tiles` on the device and depend on nothing else of them: a launch can be captured in
a CUDA graph once and replayed for other lengths. There are few compiled variants (decode, other short rows, each tile
size), and start-up compiles all of them, so that no request waits for the compiler.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.model.attention.tiles import MAX_SPLITS, Tiles
from server.model.device import launches_early

LOG2_E = 1.4426950408889634
POSITIONS = 64  # read by one iteration
LARGE_TILE_ELEMENTS = 1 << 14  # results of this size take eight warps: the registers of four would spill
POSITIONS_OF_WIDE_HEADS = 32  # for heads wider than 128 or in float32: more would not fit into shared memory


@triton.jit
def wait_for_inputs(IS_EARLY: tl.constexpr):
    """Wait for the kernels before this one, where it was launched early, and let the next one be launched."""
    if IS_EARLY:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _write_kernel(
    key, value, keys, values, slots, key_stride, value_stride, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """One program a token. `key_stride` and `value_stride` are between tokens; a token's heads are contiguous."""
    token = tl.program_id(0)
    slot = tl.load(slots + token).to(tl.int64)
    at = tl.arange(0, WIDTH)
    own = at < KV_HEADS * HEAD_DIM
    offset = slot * KV_HEADS * HEAD_DIM + at
    tl.store(keys + offset, tl.load(key + token * key_stride + at, mask=own), mask=own)
    tl.store(values + offset, tl.load(value + token * value_stride + at, mask=own), mask=own)


@triton.jit
def _write_bytes(numbers, to, scales, slot, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDTH: tl.constexpr):
    """Round one head's numbers so that the greatest magnitude is 127; what is not finite makes the scale NaN."""
    at = tl.arange(0, WIDTH)
    own = tl.load(numbers + at, mask=at < HEAD_DIM, other=0.0).to(tl.float32)
    broken = tl.sum(own * 0.0, 0)  # 0 or NaN
    finite = tl.where(own * 0.0 == 0.0, own, 0.0)
    most = tl.max(tl.abs(finite), 0)
    is_rounded = most > 1e-30  # whose reciprocal is finite
    whole = tl.floor(finite * tl.where(is_rounded, 127.0 / tl.where(is_rounded, most, 1.0), 0.0) + 0.5)
    place, scale = _places(slot // BLOCK_SIZE, slot % BLOCK_SIZE, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, True)
    tl.store(to + place + at, whole.to(tl.int8), mask=at < HEAD_DIM)
    tl.store(scales + scale, tl.where(is_rounded, most / 127.0, 0.0) + broken)


@triton.jit
def _write_bytes_kernel(
    key, value, keys, values, key_scales, value_scales, slots, key_stride, value_stride, KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Programs: (token, KV head). Strides as those of `_write_kernel`."""
    token, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + token).to(tl.int64)
    own_key, own_value = key + token * key_stride + head * HEAD_DIM, value + token * value_stride + head * HEAD_DIM
    _write_bytes(own_key, keys, key_scales, slot, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDTH)
    _write_bytes(own_value, values, value_scales, slot, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDTH)


@triton.jit
def _places(block, offset, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, OF_BYTES: tl.constexpr):
    """Where a head's numbers begin at this offset of a block, and where in float32 the scale of bytes is."""
    first, line = block * (BLOCK_SIZE * KV_HEADS), offset * KV_HEADS + head
    scale = (first * (HEAD_DIM + 4) + BLOCK_SIZE * KV_HEADS * HEAD_DIM) // 4 + line
    return first * (HEAD_DIM + 4 * OF_BYTES) + line * HEAD_DIM, scale


@triton.jit
def _scaled(numbers, scales, is_there, OF_BYTES: tl.constexpr):
    """Scores or weights of some positions times the scales of bytes; others have none."""
    if OF_BYTES:
        numbers *= tl.load(scales, mask=is_there, other=0.0)[None, :]
    return numbers


@triton.jit
def _read_positions(
    own, keys, values, key_scales, value_scales, table, at, stop, last, kv_head, scaling, running_max, total, sums,
    is_dim, KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDTH: tl.constexpr, POSITIONS: tl.constexpr, OF_BYTES: tl.constexpr,
    IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Take POSITIONS positions from `at` on into the sums of a tile; each of its lines sees those up to its `last`."""
    position, dim = at + tl.arange(0, POSITIONS), tl.arange(0, WIDTH)
    is_there = position < stop if IS_MASKED else position >= 0  # never read beyond: stale data there may be NaN
    block = tl.load(table + position // BLOCK_SIZE, mask=is_there, other=0).to(tl.int64)
    source, scale = _places(block, position % BLOCK_SIZE, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, OF_BYTES)
    keys_here = tl.load(keys + source[None, :] + dim[:, None], mask=is_there[None, :] & is_dim[:, None], other=0)
    scores = tl.dot(own, keys_here.to(own.dtype), input_precision="ieee") * scaling
    scores = _scaled(scores, key_scales + scale, is_there, OF_BYTES)
    if IS_MASKED:
        scores = tl.where(is_there[None, :] & (position[None, :] <= last), scores, float("-inf"))
    new_max = tl.maximum(running_max, tl.max(scores, 1))
    base = new_max
    if IS_MASKED:  # a line without a visible position so far has no maximum: subtract 0 instead of -inf
        base = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(scores - base[:, None])
    rescale = tl.exp2(running_max - base)
    total = total * rescale + tl.sum(weights, 1)
    values_here = tl.load(values + source[:, None] + dim[None, :], mask=is_there[:, None] & is_dim[None, :], other=0)
    weights = _scaled(weights, value_scales + scale, is_there, OF_BYTES).to(own.dtype)
    sums = sums * rescale[:, None] + tl.dot(weights, values_here.to(own.dtype), input_precision="ieee")
    return new_max, total, sums


@triton.jit(do_not_specialize=["num_splits", "num_tokens"])
def _attend_kernel(
    query, keys, values, key_scales, value_scales, tiles, tables, result, lse, scaling, num_tokens, num_splits,
    token_stride, head_stride, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, LINES: tl.constexpr, WIDTH: tl.constexpr, POSITIONS: tl.constexpr,
    IS_SPLIT: tl.constexpr, OF_BYTES: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Programs: (tile, KV head, split). Line i of a tile is query head i % GROUP of its token i // GROUP.

    Without splits, `result` is [num_tokens, heads, head_dim]; else it and `lse` are float32 [splits, num_tokens, ...].
    """
    wait_for_inputs(IS_EARLY)
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_token, own_tokens = tl.load(tiles + 4 * tile), tl.load(tiles + 4 * tile + 1)
    start, table = tl.load(tiles + 4 * tile + 2), tables + tl.load(tiles + 4 * tile + 3)
    line, dim = tl.arange(0, LINES), tl.arange(0, WIDTH)
    token, head, is_dim = line // GROUP, kv_head * GROUP + line % GROUP, dim < HEAD_DIM
    is_own = (token < own_tokens)[:, None] & is_dim[None, :]
    offset = (first_token + token) * token_stride + head * head_stride
    own = tl.load(query + offset[:, None] + dim[None, :], mask=is_own, other=0.0)
    # A split is a whole number of iterations; the last splits of a short context are empty.
    end = start + own_tokens
    length = tl.cdiv(tl.cdiv(end, num_splits), POSITIONS) * POSITIONS
    first, stop = split * length, tl.minimum(split * length + length, end)
    running_max, total = tl.full([LINES], float("-inf"), tl.float32), tl.zeros([LINES], tl.float32)
    sums = tl.zeros([LINES, WIDTH], tl.float32)
    # All tokens of the tile see the positions up to its first one: whole iterations of those need no masks.
    seen = first + tl.maximum(tl.minimum(stop, start + 1) - first, 0) // POSITIONS * POSITIONS
    last = (start + token)[:, None]
    for at in range(first, seen, POSITIONS):
        running_max, total, sums = _read_positions(
            own, keys, values, key_scales, value_scales, table, at, stop, last, kv_head, scaling, running_max, total,
            sums, is_dim, KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDTH, POSITIONS, OF_BYTES, False,
        )  # fmt: skip
    for at in range(seen, stop, POSITIONS):
        running_max, total, sums = _read_positions(
            own, keys, values, key_scales, value_scales, table, at, stop, last, kv_head, scaling, running_max, total,
            sums, is_dim, KV_HEADS, HEAD_DIM, BLOCK_SIZE, WIDTH, POSITIONS, OF_BYTES, True,
        )  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)  # line without a visible position: sums are 0, running_max stays -inf
    sums = sums / total[:, None]
    line_of = (split * num_tokens + first_token + token) * (KV_HEADS * GROUP) + head
    tl.store(result + line_of[:, None] * HEAD_DIM + dim[None, :], sums.to(result.dtype.element_ty), mask=is_own)
    if IS_SPLIT:
        tl.store(lse + line_of, running_max + tl.log2(total), mask=token < own_tokens)


@triton.jit(do_not_specialize=["num_splits", "num_lines"])
def _combine_kernel(
    parts, lse, result, num_lines, num_splits, MAX_SPLITS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    """One program a line (token and head). parts [splits, lines, head_dim], lse [splits, lines] in base 2."""
    wait_for_inputs(IS_EARLY)
    line = tl.program_id(0)
    split, dim = tl.arange(0, MAX_SPLITS), tl.arange(0, WIDTH)
    is_split, is_dim = split < num_splits, dim < HEAD_DIM
    of_split = tl.load(lse + split * num_lines + line, mask=is_split, other=float("-inf"))
    weights = tl.exp2(of_split - tl.max(of_split, 0))
    offset = (split * num_lines + line)[:, None] * HEAD_DIM + dim[None, :]
    partial = tl.load(parts + offset, mask=is_split[:, None] & is_dim[None, :], other=0.0)
    combined = tl.sum(partial * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(result + line * HEAD_DIM + dim, combined.to(result.dtype.element_ty), mask=is_dim)


def write(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Write new keys and values [num_tokens, kv_heads, head_dim] to their slots [num_tokens]."""
    num_tokens, kv_heads, head_dim = key.shape
    key, value = _contiguous_heads(key), _contiguous_heads(value)
    if keys.dtype == torch.int8:
        width = triton.next_power_of_2(head_dim)
        _write_bytes_kernel[(num_tokens, kv_heads)](
            key, value, keys, values, _scales(keys), _scales(values), slots, key.stride(0), value.stride(0),
            kv_heads, head_dim, keys.shape[1], width,
        )  # fmt: skip
        return
    width = triton.next_power_of_2(kv_heads * head_dim)
    _write_kernel[(num_tokens,)](
        key, value, keys, values, slots, key.stride(0), value.stride(0), kv_heads, head_dim, width
    )  # fmt: skip


def attend(query: Tensor, keys: Tensor, values: Tensor, tiles: Tiles, result: Tensor, scaling: float) -> None:
    """Attention of the tiles' tokens, written into `result`. query and result [num_tokens, heads, head_dim]."""
    num_tokens, heads, head_dim = query.shape
    _, block_size, kv_heads, _ = keys.shape
    group = heads // kv_heads
    if query.stride(2) != 1:
        query = query.contiguous()
    lines = max(16, triton.next_power_of_2(tiles.max_tile_tokens * group))
    width = max(16, triton.next_power_of_2(head_dim))
    is_large = lines * width >= LARGE_TILE_ELEMENTS
    num_splits, is_early = tiles.num_splits, launches_early(query.device)
    lse = parts = result
    if num_splits > 1:
        parts = torch.empty((num_splits, num_tokens, heads, head_dim), dtype=torch.float32, device=query.device)
        lse = torch.empty((num_splits, num_tokens, heads), dtype=torch.float32, device=query.device)
    of_bytes = keys.dtype == torch.int8
    key_scales, value_scales = (_scales(keys), _scales(values)) if of_bytes else (keys, values)
    _attend_kernel[(tiles.table.shape[0], kv_heads, num_splits)](
        query, keys, values, key_scales, value_scales, tiles.table, tiles.blocks, parts, lse, scaling * LOG2_E,
        num_tokens, num_splits, query.stride(0), query.stride(1), kv_heads, group, head_dim, block_size,
        lines, width, POSITIONS if width * query.element_size() <= 256 else POSITIONS_OF_WIDE_HEADS,
        num_splits > 1, of_bytes, is_early,
        num_warps=8 if is_large else 4, num_stages=2 if is_large else 3, launch_pdl=is_early,
    )  # fmt: skip
    if num_splits > 1:
        num_lines = num_tokens * heads
        _combine_kernel[(num_lines,)](
            parts, lse, result, num_lines, num_splits, MAX_SPLITS, head_dim, width, is_early, launch_pdl=is_early
        )


def _scales(part: Tensor) -> Tensor:
    """The memory of a layer's keys or values as float32: scales have places in it."""
    return part.view(torch.float32)


def _contiguous_heads(part: Tensor) -> Tensor:
    """[num_tokens, kv_heads, head_dim] -> the same, with each token's heads contiguous."""
    is_contiguous = part.stride(2) == 1 and part.stride(1) == part.shape[2]
    return part if is_contiguous else part.contiguous()
