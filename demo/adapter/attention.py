"""Attention over one row of tokens: a prefix, and segments behind it that see the prefix and themselves alone.

    row         prefix | segment | segment | segment
    positions   0 .. P | P .. P+a | P .. P+b | P .. P+c

What a prefix costs is paid once for all segments behind it. Forward and backward are written out: rotary positions, one
product of matrices a segment, and no mask between segments, so that nothing is computed that is thrown away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

Segments = Sequence[tuple[int, int]]  # first and last + 1 token of each, the prefix first


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Numbers of query heads and of key-value heads, and the size of one."""

    queries: int
    keys: int
    size: int

    @property
    def width(self) -> int:
        """Columns of queries, keys and values side by side."""
        return (self.queries + 2 * self.keys) * self.size


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of a row's positions, [tokens, 1, size / 2]; dimensions i and i + size / 2 are a pair."""

    cosines: Tensor
    sines: Tensor

    @staticmethod
    def at(positions: Tensor, size: int, theta: float) -> "Rotation":
        """The rotation at these positions."""
        frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64, device=positions.device) / size)
        angles = positions[:, None].double() * frequencies
        return Rotation(angles.cos().float()[:, None], angles.sin().float()[:, None])

    def turn(self, heads: Tensor, back: bool = False) -> Tensor:
        """Queries or keys [tokens, heads, size], or gradients turned back; in float32."""
        first, second = heads.float().chunk(2, -1)
        sines = -self.sines if back else self.sines
        return torch.cat((first * self.cosines - second * sines, second * self.cosines + first * sines), -1)


class SegmentAttention(Function):
    """Queries, keys and values [tokens, width] to the heads' outputs [tokens, queries * size]."""

    @staticmethod
    def forward(ctx: Any, joined: Tensor, rotation: Rotation, segments: Segments, shape: HeadShape) -> Tensor:
        """As the class says; the probabilities are kept for `backward`."""
        num_tokens, dtype = len(joined), joined.dtype
        split = [shape.queries, shape.keys, shape.keys]
        queries, keys, values = joined.view(num_tokens, -1, shape.size).split(split, 1)
        scaled = rotation.turn(queries) * shape.size**-0.5
        ctx.queries = _grouped(scaled.to(dtype), shape.keys)
        ctx.keys = rotation.turn(keys).to(dtype).transpose(0, 1).contiguous()
        ctx.values = values.transpose(0, 1).contiguous()
        ctx.rotation, ctx.segments, ctx.shape = rotation, segments, shape
        ctx.probabilities = []
        output = torch.empty_like(ctx.queries)
        behind = segments[0][1]
        for first, last in segments:
            own, chosen = last - first, _rows(ctx.queries, first, last)
            seen_keys = _with_prefix(ctx.keys, first, last, behind)
            scores = torch.bmm(chosen, seen_keys.transpose(1, 2)).float()
            scores.view(shape.keys, -1, own, scores.shape[-1])[..., -own:] += _future(own)
            probabilities = scores.softmax(-1).to(dtype)
            reply = torch.bmm(probabilities, _with_prefix(ctx.values, first, last, behind))
            output[:, :, first:last] = reply.view(shape.keys, -1, own, shape.size)
            ctx.probabilities.append(probabilities)
        ctx.output = output
        return _flat(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of queries, keys and values."""
        shape, behind = ctx.shape, ctx.segments[0][1]
        given = _grouped(gradients[0].view(len(gradients[0]), -1, shape.size), shape.keys)
        of_queries = torch.empty_like(ctx.queries, dtype=torch.float32)
        of_keys = torch.zeros_like(ctx.keys, dtype=torch.float32)
        of_values = torch.zeros_like(ctx.values, dtype=torch.float32)
        for (first, last), probabilities in zip(ctx.segments, ctx.probabilities, strict=True):
            own = last - first
            outer, chosen = _rows(given, first, last), _rows(ctx.queries, first, last)
            seen_keys = _with_prefix(ctx.keys, first, last, behind)
            inner = torch.bmm(outer, _with_prefix(ctx.values, first, last, behind).transpose(1, 2))
            inner -= (outer * _rows(ctx.output, first, last)).sum(-1, keepdim=True)
            inner *= probabilities
            of_queries[:, :, first:last] = torch.bmm(inner, seen_keys).view(shape.keys, -1, own, shape.size)
            _add(of_keys, torch.bmm(inner.transpose(1, 2), chosen), first, last)
            _add(of_values, torch.bmm(probabilities.transpose(1, 2), outer), first, last)
        ctx.probabilities = []
        of_queries *= shape.size**-0.5
        flat = _flat(of_queries).view(len(given[0, 0]), -1, shape.size)
        joined = torch.cat(
            (
                ctx.rotation.turn(flat, back=True),
                ctx.rotation.turn(of_keys.transpose(0, 1), back=True),
                of_values.transpose(0, 1),
            ),
            1,
        )
        return joined.flatten(1).to(gradients[0].dtype), None, None, None


def _grouped(heads: Tensor, num_keys: int) -> Tensor:
    """Query heads [tokens, heads, size] by the key head that they share: [keys, heads / keys, tokens, size]."""
    return heads.view(len(heads), num_keys, -1, heads.shape[-1]).permute(1, 2, 0, 3).contiguous()


def _flat(grouped: Tensor) -> Tensor:
    """The reverse of `_grouped`, with all heads of a token in one row."""
    return grouped.permute(2, 0, 1, 3).flatten(1)


def _rows(grouped: Tensor, first: int, last: int) -> Tensor:
    """All query heads of one key head in one matrix: [keys, heads / keys * tokens, size]."""
    return grouped[:, :, first:last].flatten(1, 2)


def _with_prefix(heads: Tensor, first: int, last: int, behind: int) -> Tensor:
    """What a segment sees of keys or values: the prefix and itself."""
    return heads[:, :last] if first <= behind else torch.cat((heads[:, :behind], heads[:, first:last]), 1)


def _add(total: Tensor, gradient: Tensor, first: int, last: int) -> None:
    """Add the gradient of what `_with_prefix` returned."""
    own = last - first
    total[:, first:last] += gradient[:, -own:]
    if first:
        total[:, : gradient.shape[1] - own] += gradient[:, :-own]


def _future(length: int) -> Tensor:
    """What is added to scores: minus infinity for tokens that come later."""
    return torch.full((length, length), float("-inf")).triu_(1)
