"""Computations of single numbers and of rows, with their gradients: what a GPU's time goes to, unless they are fused.

Each is a plain function of tensors without side effects, so that `torch.compile` makes one kernel of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of float32 rows in the type of the weight, and what each row was multiplied by."""
    scale = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (x * scale).to(weight.dtype) * weight, scale


def norm_back(given: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the rows that `norm` was given."""
    normal = x * scale
    outer = given.float() * weight.float()
    return (outer - normal * (outer * normal).mean(-1, keepdim=True)) * scale


def gate(joined: Tensor) -> Tensor:
    """silu(gates) * ups of [tokens, gates | ups]."""
    gates, ups = joined.chunk(2, -1)
    return F.silu(gates) * ups


def gate_back(given: Tensor, joined: Tensor) -> Tensor:
    """The gradient of `joined`."""
    gates, ups = joined.float().chunk(2, -1)
    outer, share = given.float(), gates.sigmoid()
    of_gates = outer * ups * share * (1 + gates * (1 - share))
    return torch.cat((of_gates, outer * gates * share), -1).to(joined.dtype)


def _turn(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = heads.float().chunk(2, -1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1).to(heads.dtype)


def split_heads(
    joined: Tensor, cosines: Tensor, sines: Tensor, num_queries: int, num_keys: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [rows, queries, length, size] of [tokens, width], turned; keys and values repeated.

    `cosines` and `sines` are [rows, 1, length, size / 2].
    """
    rows, length = cosines.shape[0], cosines.shape[2]
    heads = joined.view(rows, length, -1, size).transpose(1, 2)
    queries, keys, values = heads.split([num_queries, num_keys, num_keys], 1)
    times = num_queries // num_keys
    return (
        _turn(queries, cosines, sines).contiguous(),
        _turn(keys, cosines, sines).repeat_interleave(times, 1),
        values.repeat_interleave(times, 1),
    )


def join_heads(given: tuple[Tensor, Tensor, Tensor], cosines: Tensor, sines: Tensor, num_keys: int) -> Tensor:
    """The gradient of `joined` from those of queries, keys and values."""
    rows, length = cosines.shape[0], cosines.shape[2]
    queries, keys, values = given
    grouped = (rows, num_keys, queries.shape[1] // num_keys, length, queries.shape[3])
    of_keys = keys.float().view(grouped).sum(2)
    of_values = values.float().view(grouped).sum(2)
    turned = (_turn(queries.float(), cosines, -sines), _turn(of_keys, cosines, -sines), of_values)
    return torch.cat(turned, 1).transpose(1, 2).reshape(rows * length, -1).to(queries.dtype)


@dataclass(frozen=True, slots=True)
class Pointwise:
    """These functions, as they are or compiled."""

    norm: Callable[..., Any] = norm
    norm_back: Callable[..., Any] = norm_back
    gate: Callable[..., Any] = gate
    gate_back: Callable[..., Any] = gate_back
    split_heads: Callable[..., Any] = split_heads
    join_heads: Callable[..., Any] = join_heads

    @staticmethod
    def compiled() -> "Pointwise":
        """Compiled for fixed shapes when they are first called."""
        functions = (norm, norm_back, gate, gate_back, split_heads, join_heads)
        return Pointwise(*(torch.compile(one, dynamic=False, fullgraph=True) for one in functions))
