"""`decoder.LayerOps` as fused Triton kernels.

On a GPU a step of few tokens takes as long as its kernel launches: 18 a layer with torch's operations, 11 with these.
Everything between load and store is computed in float32 and rounded once. Inputs are contiguous along their last
dimension, as matrix products return them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.model.layers.decoder import HeadNorms, RmsNorm

PROGRAM_ELEMENTS = 1024  # results of one program of `silu_and_mul`
PROGRAM_HEADS = 8  # of one program of `norm_and_rotate`
WIDE_LINE = 2048  # tokens wider than this are normed by eight warps


@triton.jit
def _add_rms_norm_kernel(
    hidden, added, weight, normed, epsilon, SIZE: tl.constexpr, WIDTH: tl.constexpr, ADDS: tl.constexpr
):  # fmt: skip
    """One program a token. `hidden` is overwritten by the sum, rounded to its type before it is normed."""
    at = tl.arange(0, WIDTH)
    own = at < SIZE
    offset = tl.program_id(0).to(tl.int64) * SIZE + at
    value = tl.load(hidden + offset, mask=own, other=0.0)
    if ADDS:
        value = (value.to(tl.float32) + tl.load(added + offset, mask=own, other=0.0).to(tl.float32)).to(value.dtype)
        tl.store(hidden + offset, value, mask=own)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + epsilon)
    result = wide * scale * tl.load(weight + at, mask=own, other=0.0).to(tl.float32)
    tl.store(normed + offset, result.to(normed.dtype.element_ty), mask=own)


@triton.jit
def _norm_and_rotate_kernel(
    heads, weight, cos, sin, rotated, token_stride, head_stride, epsilon,
    HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, NORMS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Programs: (token, GROUP heads). The first half of `sin` is negated."""
    token, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    head = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    is_dim = at < HALF
    own = (head < HEADS)[:, None] & is_dim[None, :]
    line = heads + token * token_stride + head[:, None] * head_stride + at[None, :]
    first = tl.load(line, mask=own, other=0.0).to(tl.float32)
    second = tl.load(line + HALF, mask=own, other=0.0).to(tl.float32)
    if NORMS:
        scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + epsilon)[:, None]
        factor = weight + head[:, None] * 2 * HALF + at[None, :]
        first = first * scale * tl.load(factor, mask=own, other=0.0).to(tl.float32)
        second = second * scale * tl.load(factor + HALF, mask=own, other=0.0).to(tl.float32)
    angle = token * 2 * HALF + at
    result = rotated + (token * HEADS + head[:, None]) * 2 * HALF + at[None, :]
    cosine = tl.load(cos + angle, mask=is_dim, other=0.0).to(tl.float32)[None, :]
    sine = tl.load(sin + angle, mask=is_dim, other=0.0).to(tl.float32)[None, :]
    tl.store(result, (first * cosine + second * sine).to(rotated.dtype.element_ty), mask=own)
    cosine = tl.load(cos + angle + HALF, mask=is_dim, other=0.0).to(tl.float32)[None, :]
    sine = tl.load(sin + angle + HALF, mask=is_dim, other=0.0).to(tl.float32)[None, :]
    tl.store(result + HALF, (second * cosine + first * sine).to(rotated.dtype.element_ty), mask=own)


@triton.jit
def _silu_and_mul_kernel(both, result, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Programs: (token, part of the line). `both` holds a token's gate projection, then its up projection."""
    token, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    own = at < SIZE
    gate = tl.load(both + token * 2 * SIZE + at, mask=own, other=0.0).to(tl.float32)
    up = tl.load(both + token * 2 * SIZE + SIZE + at, mask=own, other=0.0).to(tl.float32)
    tl.store(result + token * SIZE + at, (gate * tl.sigmoid(gate) * up).to(result.dtype.element_ty), mask=own)


def add_rms_norm(hidden: Tensor, added: Tensor | None, norm: RmsNorm) -> Tensor:
    """As `LayerOps.add_rms_norm`."""
    num_tokens, size = hidden.shape
    normed = torch.empty_like(hidden)
    width = triton.next_power_of_2(size)
    _add_rms_norm_kernel[(num_tokens,)](
        hidden, hidden if added is None else added, norm.weight, normed, norm.epsilon, size, width, added is not None,
        num_warps=8 if width > WIDE_LINE else 4,
    )  # fmt: skip
    return normed


def norm_and_rotate(heads: Tensor, norms: HeadNorms | None, cos: Tensor, sin: Tensor) -> Tensor:
    """As `LayerOps.norm_and_rotate`."""
    num_tokens, num_heads, head_dim = heads.shape
    rotated = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    weight, epsilon = (norms.weight, norms.epsilon) if norms else (heads, 0.0)
    half = head_dim // 2
    _norm_and_rotate_kernel[(num_tokens, triton.cdiv(num_heads, PROGRAM_HEADS))](
        heads, weight, cos, sin, rotated, heads.stride(0), heads.stride(1), epsilon,
        num_heads, half, triton.next_power_of_2(half), norms is not None, PROGRAM_HEADS, num_warps=2,
    )  # fmt: skip
    return rotated


def silu_and_mul(both: Tensor) -> Tensor:
    """As `LayerOps.silu_and_mul`."""
    num_tokens, size = both.shape[0], both.shape[1] // 2
    result = torch.empty((num_tokens, size), dtype=both.dtype, device=both.device)
    _silu_and_mul_kernel[(num_tokens, triton.cdiv(size, PROGRAM_ELEMENTS))](both, result, size, PROGRAM_ELEMENTS)
    return result
