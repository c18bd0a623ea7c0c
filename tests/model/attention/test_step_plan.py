"""Plans of short rows: every (row, block) pair once, in place where that pays, with unchanged attention."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from server.model.attention.base import PoolShape
from server.model.attention.cpu import KvPool
from server.model.attention.step_plan import MIN_RUN_BYTES, RowPlan, plan_step

NUM_BLOCKS, BLOCK_SIZE = 48, 4
SHAPE = PoolShape(BLOCK_SIZE, 1, 2, 8, torch.float32)


@st.composite
def rows_over_blocks(draw: st.DrawFn) -> list[RowPlan]:
    """Rows of one length, some with a common prefix, and own blocks to write to, anywhere in the pool."""
    num_tokens = draw(st.integers(1, 4))
    free = draw(st.permutations(range(NUM_BLOCKS))) if draw(st.booleans()) else list(range(NUM_BLOCKS))
    prefix = [free.pop() for _ in range(draw(st.integers(0, 8)))]
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        own = [free.pop() for _ in range(draw(st.integers(2, 6)))]
        blocks = [*(prefix if draw(st.booleans()) else []), *own]
        most = len(blocks) * BLOCK_SIZE - num_tokens
        least = max(0, (len(blocks) - 1) * BLOCK_SIZE - num_tokens + 1)
        rows.append(RowPlan(num_tokens, draw(st.integers(least, most)), blocks))
    return rows


@given(rows_over_blocks(), st.sampled_from([1, 3, 100]))
def test_every_row_attends_to_its_own_tokens_only(rows: list[RowPlan], min_run: int) -> None:
    """Shared prefixes, gaps, foreign and isolated blocks: each row's attention is that over its own blocks alone."""
    generator = torch.Generator().manual_seed(0)
    pool = KvPool(SHAPE, NUM_BLOCKS)
    for part in (*pool.keys, *pool.values):
        part.copy_(torch.randn(part.shape, generator=generator))
    num_tokens = sum(row.num_tokens for row in rows)
    query = torch.randn((num_tokens, 4, 8), generator=generator)
    key, value = torch.randn((2, num_tokens, 2, 8), generator=generator)
    step = pool.arrange(rows, {0: 0})
    plan = plan_step(rows, BLOCK_SIZE, MIN_RUN_BYTES // min_run)
    object.__setattr__(step, "plan", plan)
    attended = step.attend(0, query, key, value, 0.3)
    for number, row in enumerate(rows):
        own = slice(number * row.num_tokens, (number + 1) * row.num_tokens)
        assert torch.allclose(attended[own], _alone(pool, row, query[own]), atol=1e-5)


def _alone(pool: KvPool, row: RowPlan, query: torch.Tensor) -> torch.Tensor:
    end = row.start + row.num_tokens
    keys = pool.keys[0][list(row.blocks)].permute(1, 0, 3, 2).reshape(2, -1, 8)[:, :end]
    values = pool.values[0][list(row.blocks)].permute(1, 0, 2, 3).reshape(2, -1, 8)[:, :end]
    visible = torch.arange(end) <= torch.arange(row.start, end)[:, None]
    result = functional.scaled_dot_product_attention(
        query.transpose(0, 1), keys, values, attn_mask=visible, scale=0.3, enable_gqa=True
    )
    return result.transpose(0, 1)


def test_rows_that_share_a_long_prefix_copy_none_of_it() -> None:
    """Gathering it for every row took half the time of a step of agents."""
    prefix = list(range(100))
    rows = [RowPlan(1, 3300, [*prefix, 200 + 4 * i, 201 + 4 * i, 202 + 4 * i, 203 + 4 * i]) for i in range(4)]
    (short,) = plan_step(rows, 32, MIN_RUN_BYTES // 2).short
    assert all(isinstance(run.blocks, slice) for run in short.runs)
    assert short.bias.shape[0] == 4 * 104


def test_isolated_blocks_are_gathered_together() -> None:
    """One matrix product for each of them would cost more than the copy."""
    rows = [RowPlan(1, 319, [*range(30), *range(50, 100, 7), 200, 300][:40])]
    (short,) = plan_step(rows, 8, MIN_RUN_BYTES // 4).short
    in_place, gathered = short.runs
    assert in_place.blocks == slice(0, 30)
    assert not isinstance(gathered.blocks, slice) and len(gathered.blocks) == 10


@pytest.mark.parametrize("gap", [2, 3])
def test_small_gaps_between_rows_are_read_with_them(gap: int) -> None:
    rows = [RowPlan(1, 16 * 5 - 1, range(5)), RowPlan(1, 16 * 5 - 1, range(5 + gap, 10 + gap))]
    (short,) = plan_step(rows, 16, MIN_RUN_BYTES // 2).short
    assert short.has_foreign_blocks == (gap <= 2)
    assert len(short.runs) == (1 if gap <= 2 else 2)
    assert np.prod(short.bias.shape[:1]) == (10 + gap if gap <= 2 else 10)


def test_a_run_of_mostly_foreign_blocks_is_gathered() -> None:
    """The scores of each foreign block take memory that was not reserved."""
    rows = [RowPlan(1, 16 * 10 - 1, range(10 * i, 10 * i + 40, 4)) for i in (0, 4)]
    (short,) = plan_step(rows, 16, MIN_RUN_BYTES // 100).short
    assert not short.has_foreign_blocks and short.bias.shape[0] == 20
