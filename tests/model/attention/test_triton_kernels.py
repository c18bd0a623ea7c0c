"""Attention kernels against torch's attention: in Triton's interpreter, or on a card with `make test-gpu`.

The interpreter does not support bfloat16 products; these are compared on a card only, as at every start of the engine.
"""

import importlib.util
import random
from dataclasses import replace

import pytest
import torch

from server.model.attention import triton_kernels
from server.model.attention.base import PoolShape
from server.model.attention.gpu import CudaKvPool, Kernels
from server.model.attention.step_plan import RowPlan
from server.model.attention.tiles import (
    MAX_SPLITS,
    MIN_TILE_TOKENS,
    choose_num_splits,
    choose_tile_tokens,
    plan_tiles,
    tile_sizes,
)
from server.model.kernel_selection import choose_kernels, compare_attention
from tests.model.attention import reference_kernels

NUM_BLOCKS = 48
CPU = torch.device("cpu")
HEADS = [(2, 2, 64), (7, 1, 80), (2, 1, 256)]  # query heads, KV heads, head_dim: one not a power of two, one wide


def rows_at_random(seed: int, block_size: int) -> list[RowPlan]:
    """Short rows first, as the runner orders them, ending around block boundaries, in shuffled blocks."""
    chance = random.Random(seed)
    free = chance.sample(range(NUM_BLOCKS - 1), NUM_BLOCKS - 1)  # the last block belongs to no row
    rows = []
    some, more = chance.randint(2, 5), 2 * MIN_TILE_TOKENS + chance.randint(2, 9)
    for num_tokens in (1, 1, some, MIN_TILE_TOKENS, MIN_TILE_TOKENS + 1, more):
        start = chance.choice((0, block_size - 1, block_size, 2 * block_size + 1, 5 * block_size - num_tokens % 3))
        count = -(-(start + num_tokens) // block_size)
        rows.append(RowPlan(num_tokens, start, [free.pop() for _ in range(count)]))
    return rows


def attended(pool: CudaKvPool, rows: list[RowPlan], heads: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One step's result, and the keys of all blocks of its rows afterwards."""
    generator = torch.Generator().manual_seed(seed)
    shape, device = pool.shape, pool.keys[0].device
    for part in (pool.keys[0], pool.values[0]):
        part.copy_(torch.randn(part.shape, generator=generator))
        part[pool.num_blocks - 1] = torch.nan  # a foreign block
    num_tokens = sum(row.num_tokens for row in rows)
    # Slices of one tensor, as the decoder's merged projection returns them.
    projected = torch.randn((num_tokens, heads + 2 * shape.kv_heads, shape.head_dim), generator=generator)
    query, key, value = torch.split(projected.to(device, shape.dtype), [heads, shape.kv_heads, shape.kv_heads], 1)
    result = pool.arrange(rows, {0: 0}).attend(0, query, key, value, shape.head_dim**-0.5)
    return result.float().cpu(), pool.keys[0][: pool.num_blocks - 1].float().cpu()


def check_against_gathering(kernels: Kernels, shape: PoolShape, heads: int, seed: int, device: torch.device) -> None:
    """The kernels' result equals that of torch's attention, and every new key is in its slot."""
    rows = rows_at_random(seed, shape.block_size)
    expected, _ = attended(CudaKvPool(shape, NUM_BLOCKS, device), rows, heads, seed)
    _, expected_keys = attended(CudaKvPool(shape, NUM_BLOCKS, device, reference_kernels), rows, heads, seed)
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[shape.dtype]
    for size in tile_sizes(shape, heads):
        found, keys = attended(CudaKvPool(shape, NUM_BLOCKS, device, kernels, (size,)), rows, heads, seed)
        assert torch.allclose(found, expected, atol=tolerance * (1 if device == CPU else 4), rtol=0)
        assert torch.equal(keys, expected_keys)
        by_torch = CudaKvPool(shape, NUM_BLOCKS, device, kernels, (size,), prompts_by_torch=True)
        for step in (rows, [row for row in rows if row.start == 0 and row.num_tokens > MIN_TILE_TOKENS]):
            if step:
                new, keys = attended(by_torch, step, heads, seed)
                plain, _ = attended(CudaKvPool(shape, NUM_BLOCKS, device), step, heads, seed)
                assert torch.allclose(new, plain, atol=tolerance * (1 if device == CPU else 4), rtol=0)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_tiles_attend_as_gathered_rows_do(heads: int, kv_heads: int, head_dim: int, is_long: bool) -> None:
    """A tile with a wrong first token, position or block table would read another row's keys."""
    for seed in range(20 if is_long else 5):
        shape = PoolShape(random.Random(seed).choice((4, 16, 32)), 1, kv_heads, head_dim, torch.float32)
        check_against_gathering(reference_kernels, shape, heads, seed, CPU)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_interpreted_kernels_equal_gathering(heads: int, kv_heads: int, head_dim: int) -> None:
    """Masks at the ends of contexts and blocks, grouped heads, padded head dimensions, split contexts."""
    dtype = torch.float16 if heads == 7 else torch.float32
    check_against_gathering(triton_kernels, PoolShape(8, 1, kv_heads, head_dim, dtype), heads, heads, CPU)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [pytest.param(*sizes, marks=() if sizes[0] == 7 else pytest.mark.long) for sizes in HEADS],
)
def test_interpreted_kernels_read_and_write_bytes(heads: int, kv_heads: int, head_dim: int) -> None:
    """A scale of another token or head; NaN of a broken token, which must stay NaN and stay in its own block."""
    dtype = torch.float16 if heads == 7 else torch.float32
    shape = PoolShape(8, 1, kv_heads, head_dim, dtype, in_bytes=True)
    rows, generator = rows_at_random(heads, 8), torch.Generator().manual_seed(heads)
    context = torch.randn((2, (NUM_BLOCKS + 1) * 8, kv_heads, head_dim), generator=generator).to(dtype)
    context[:, (NUM_BLOCKS - 1) * 8 :] = torch.nan  # foreign blocks
    count = sum(row.num_tokens for row in rows)
    query, key, value = (
        torch.randn((count, n, head_dim), generator=generator).to(dtype) for n in (heads, kv_heads, kv_heads)
    )
    results, pools = [], []
    for kernels in (reference_kernels, triton_kernels):
        pool = CudaKvPool(shape, NUM_BLOCKS, CPU, kernels, (MIN_TILE_TOKENS,))
        slots = torch.arange(context.shape[1], dtype=torch.int32)
        kernels.write(context[0], context[1], pool.keys[0], pool.values[0], slots)
        results.append(pool.arrange(rows, {0: 0}).attend(0, query, key, value, head_dim**-0.5).float())
        pools.append(pool)
    assert results[0].isfinite().all()
    assert torch.allclose(results[0], results[1], atol=1e-2, rtol=0)  # halves are rounded up or down: a step of 1 / 32
    ours, theirs = (pool.keys[0][: NUM_BLOCKS - 1].flatten(1).int() for pool in pools)
    own = slice(8 * kv_heads * head_dim)
    assert int((ours - theirs)[:, own].abs().max()) <= 1 and int((ours != theirs)[:, own].sum()) <= 4
    assert pools[1].keys[0][NUM_BLOCKS - 1].flatten()[8 * kv_heads * head_dim :].view(torch.float32).isnan().all()
    assert compare_attention(reference_kernels, shape, heads, CPU).is_small


def test_splits_of_a_long_context_are_combined_when_some_are_empty() -> None:
    """The last splits of a short row beside a long one are empty and must have no weight."""
    shape = PoolShape(16, 1, 2, 64, torch.float32)
    rows = [RowPlan(1, 0, [40]), RowPlan(1, 500, list(range(32))), RowPlan(3, 64, [33, 35, 34, 36, 38])]
    assert plan_tiles(rows, 16, 2, (MIN_TILE_TOKENS,), CPU).launches[0].num_splits == 4
    expected, _ = attended(CudaKvPool(shape, NUM_BLOCKS, CPU), rows, 4, 3)
    found, _ = attended(CudaKvPool(shape, NUM_BLOCKS, CPU, triton_kernels), rows, 4, 3)
    assert torch.allclose(found, expected, atol=2e-6, rtol=0)


def test_contexts_are_split_only_to_occupy_the_card() -> None:
    assert choose_num_splits(8, 100) == 1, "too short to split"
    assert choose_num_splits(8, 40_960) == MAX_SPLITS
    assert choose_num_splits(256 * 8, 40_960) == 1, "the rows occupy the card"


def sizes(group: int, head_bytes: int) -> tuple[int, ...]:
    """Tile sizes for one KV head with this many query heads."""
    return tile_sizes(PoolShape(16, 1, 1, head_bytes // 2, torch.bfloat16), group)


def test_long_rows_get_large_tiles_where_enough_of_them_occupy_the_card() -> None:
    assert sizes(1, 256) == (16, 32, 64, 128) and sizes(4, 256) == (16, 32) and sizes(8, 512) == (16,)
    assert sizes(2, 1024) == (16, 32), "more would not fit into shared memory"
    assert choose_tile_tokens(8 * 100, sizes(2, 256)) == 16
    assert choose_tile_tokens(8 * 2000, sizes(2, 256)) == 32
    assert choose_tile_tokens(8 * 8000, sizes(2, 256)) == 64
    assert choose_tile_tokens(8 * 8000, sizes(7, 256)) == 16


def test_the_comparison_at_start_rejects_broken_kernels() -> None:
    """Kernels that compile but compute something else must not be used."""

    class OneOff:
        """Reads one position too few in every tile."""

        write = staticmethod(reference_kernels.write)

        @staticmethod
        def attend(query, keys, values, tiles, result, scaling):  # type: ignore[no-untyped-def]
            table = tiles.table.clone()
            table[:, 2] = (table[:, 2] - 1).clamp(min=0)
            short = type(tiles)(table, tiles.blocks, tiles.num_tokens, tiles.max_tile_tokens, tiles.num_splits)
            reference_kernels.attend(query, keys, values, short, result, scaling)

    shape = PoolShape(16, 28, 2, 64, torch.float32)
    assert compare_attention(reference_kernels, shape, 4, CPU).is_small
    assert not compare_attention(OneOff(), shape, 4, CPU).is_small
    assert choose_kernels(shape, 4, CPU) is None, "the CPU has its own attention"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [*HEADS, (16, 8, 128), (32, 8, 128)])
def test_on_the_gpu_kernels_equal_gathering(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    cuda = torch.device("cuda")
    for seed in range(5):
        shape = PoolShape(16, 1, kv_heads, head_dim, dtype)
        check_against_gathering(triton_kernels, shape, heads, seed, cuda)
    assert importlib.util.find_spec("triton") is not None
    assert choose_kernels(shape, heads, cuda) is triton_kernels, "the engine uses them on this card"
    assert choose_kernels(replace(shape, in_bytes=True), heads, cuda) is triton_kernels, "over bytes, too"
