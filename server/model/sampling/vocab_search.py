"""Argmax, top-k and inverse CDF over vocabulary-sized lines of float32, in two levels: by block, then within.

A line of 150,000 values is read once, at the speed of a vectorised maximum or sum; sequential work (argmax, sort,
cumulative sum in float64) runs over per-block values or over the few blocks that matter. Measured for 32 lines of
151,936 on one core: argmax 4.1 -> 1.2 ms, top 256 10 -> 3 ms, inverse CDF 46 -> 2 ms.
"""

import torch
from torch import Tensor

BLOCK_IDS = 64


def split_blocks(lines: Tensor, fill: float) -> Tensor:
    """[lines, vocab] -> [lines, blocks, BLOCK_IDS], the last block padded; a view if no padding is needed."""
    missing = -lines.shape[1] % BLOCK_IDS
    if missing:
        lines = torch.nn.functional.pad(lines, (0, missing), value=fill)
    return lines.view(lines.shape[0], -1, BLOCK_IDS)


def first_max(lines: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each line (NaN if it contains one) and the lowest id that has it. [lines], [lines]."""
    blocks = split_blocks(lines, -torch.inf)
    maxima, block = blocks.amax(-1).max(-1)
    at = torch.arange(lines.shape[0], device=lines.device)
    return maxima, block * BLOCK_IDS + blocks[at, block].argmax(-1)


def top_values(lines: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` greatest values of each line, descending, and their ids. [lines, count], [lines, count]."""
    blocks = split_blocks(lines, -torch.inf)
    num_lines, num_blocks, _ = blocks.shape
    if num_blocks <= 2 * count:
        return lines.topk(count, dim=-1)
    # The `count` blocks with the greatest maxima contain the `count` greatest values.
    found = blocks.amax(-1).topk(count, dim=-1, sorted=False).indices
    values = blocks.gather(1, found.unsqueeze(-1).expand(-1, -1, BLOCK_IDS)).view(num_lines, -1)
    values, at = values.topk(count, dim=-1)
    ids = found.gather(1, at // BLOCK_IDS) * BLOCK_IDS + at % BLOCK_IDS
    return values, ids


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first id of each line where the normalized cumulative sum of the weights exceeds the number in [0, 1).

    weights [lines, vocab], non-negative; uniforms [lines], float64. Never an id of weight 0. Returns [lines].
    """
    blocks = split_blocks(weights, 0.0)
    before_block = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    goals = (uniforms * before_block[:, -1]).unsqueeze(1)
    block = _first_above(before_block, goals)
    at = torch.arange(weights.shape[0], device=weights.device)
    own = blocks[at, block]
    already = torch.where(block > 0, before_block[at, (block - 1).clamp(min=0)], 0.0)
    return block * BLOCK_IDS + _first_above(own.cumsum(-1, dtype=torch.float64), goals - already.unsqueeze(1))


def _first_above(cumulated: Tensor, goals: Tensor) -> Tensor:
    """The first index above the goal, at most the last one with weight. [lines, n], [lines, 1] -> [lines]."""
    at = torch.searchsorted(cumulated, goals, right=True).squeeze(1)
    last = torch.searchsorted(cumulated, cumulated[:, -1:].contiguous()).squeeze(1)
    return torch.minimum(at, last).clamp_(max=cumulated.shape[1] - 1)  # NaN lines end here too
