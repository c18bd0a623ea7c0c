"""Reference implementation of `gpu.Kernels` in plain torch, tile by tile; runs on the CPU."""

import torch
from torch import Tensor

from server.model.attention.tiles import Tiles


def write(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Write new keys and values [num_tokens, kv_heads, head_dim] to their slots [num_tokens]."""
    locations = slots.long() // keys.shape[1], slots.long() % keys.shape[1]
    if keys.dtype == torch.int8:
        for new, part in ((key, keys), (value, values)):
            most = new.float().abs().amax(-1)
            whole = (new.float() * (127 / most)[..., None] + 0.5).floor().to(torch.int8)
            stored, scales = _in_bytes(part, new.shape[-1])
            stored[locations], scales[locations] = whole, most / 127
        return
    keys.index_put_(locations, key)
    values.index_put_(locations, value)


def attend(query: Tensor, keys: Tensor, values: Tensor, tiles: Tiles, result: Tensor, scaling: float) -> None:
    """Attention of the tiles' tokens, written into `result`."""
    group = query.shape[1] // keys.shape[2]
    if keys.dtype == torch.int8:
        parts = (_in_bytes(part, query.shape[-1]) for part in (keys, values))
        keys, values = (stored.float() * scales[..., None] for stored, scales in parts)
    for first, num_tokens, start, begin in tiles.table.tolist():
        end = start + num_tokens
        blocks = tiles.blocks[begin : begin + -(-end // keys.shape[1])].long()
        # [heads, positions, head_dim]
        context_keys, context_values = (
            part[blocks].flatten(0, 1)[:end].repeat_interleave(group, 1).transpose(0, 1).float()
            for part in (keys, values)
        )
        own = query[first : first + num_tokens].transpose(0, 1).float()
        scores = own @ context_keys.transpose(1, 2) * scaling
        hidden = torch.arange(end) > torch.arange(start, end)[:, None]
        weights = torch.softmax(scores.masked_fill(hidden.to(scores.device), -torch.inf), -1)
        result[first : first + num_tokens] = (weights @ context_values).transpose(0, 1).to(result.dtype)


def _in_bytes(part: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Bytes [blocks, block_size, kv_heads, head_dim] and scales [blocks, block_size, kv_heads] of a pool's tensor."""
    num_blocks, block_size, kv_heads, _ = part.shape
    lines = block_size * kv_heads
    flat = part.view(num_blocks, -1)
    stored = flat[:, : lines * head_dim].view(num_blocks, block_size, kv_heads, head_dim)
    return stored, flat.view(torch.float32)[:, lines * head_dim // 4 :].view(num_blocks, block_size, kv_heads)
