"""Products with weights of four and eight bits as a Triton kernel, which unpacks them tile by tile.

Codes are exact in the type of the inputs; a weight is rounded to it once, after its scale and minimum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.model.quantization.linear import multiply_unpacked
from server.model.quantization.packed_weight import BLOCK, PANEL, PackedWeight
from server.model.quantization.quantize import quantize

WIDTHS = (4, 8)
TOKENS, OUTPUTS = 16, 64  # of a program


@triton.jit
def _multiplier(numbers, supers, panel, column, group, num_groups, num_supers):
    """Scales or minimums of a group for these outputs, in float32; `supers` multiply them if there are any."""
    own = tl.load(numbers + (panel * num_groups + group) * 16 + column).to(tl.float32)
    if num_supers > 0:
        place = group // (num_groups // num_supers)
        own *= tl.load(supers + (panel * num_supers + place) * 16 + column)
    return own


@triton.jit
def _product_kernel(
    hidden, codes, scales, minimums, supers, super_minimums, result, num_tokens, outputs, inputs, offset,
    num_groups: tl.constexpr, num_supers: tl.constexpr, HAS_MINIMUMS: tl.constexpr, WIDTH: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Programs: (tokens, outputs). Codes are bytes, four of each output at a time (`packed_weight.py`)."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    output = tl.program_id(1).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    panel, column = tl.minimum(output, outputs - 1) // 16, output % 16
    within = tl.arange(0, 32)
    in_byte: tl.constexpr = 8 // WIDTH
    place = (within // (4 * in_byte) * 64 + within % 4)[:, None] + 4 * column[None, :]
    shift = (within // 4 % in_byte * WIDTH)[:, None]
    blocks = inputs // 32
    total = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for block in range(blocks):
        at = token[:, None] * inputs + block * 32 + within[None, :]
        taken = tl.load(hidden + at, mask=token[:, None] < num_tokens, other=0.0)
        stored = tl.load(codes + (panel[None, :] * blocks + block) * (64 * WIDTH) + place).to(tl.int32)
        code = ((stored >> shift) & ((1 << WIDTH) - 1)).to(tl.float32)
        group = block * num_groups // blocks
        scale = _multiplier(scales, supers, panel, column, group, num_groups, num_supers)[None, :]
        if HAS_MINIMUMS:
            minimum = _multiplier(minimums, super_minimums, panel, column, group, num_groups, num_supers)[None, :]
            weight = code * scale - minimum
        else:
            weight = (code - offset) * scale
        total += tl.dot(taken, weight.to(taken.dtype), input_precision="ieee")
    at = token[:, None] * outputs + output[None, :]
    inside = (token[:, None] < num_tokens) & (output[None, :] < outputs)
    tl.store(result + at, total.to(result.dtype.element_ty), mask=inside)


def multiply(packed: PackedWeight, hidden: Tensor) -> Tensor:
    """[tokens, inputs] -> [tokens, outputs] in the same type; torch unpacks other widths and groups."""
    if packed.width not in WIDTHS or packed.group % BLOCK:
        return multiply_unpacked(packed, hidden)
    hidden = hidden.contiguous()
    result = torch.empty(len(hidden), packed.outputs, dtype=hidden.dtype, device=hidden.device)
    unused = packed.scales
    minimums, supers, super_minimums = (
        unused if part is None else part for part in (packed.minimums, packed.super_scales, packed.super_minimums)
    )
    num_supers = 0 if packed.super_scales is None else supers.shape[1]
    _product_kernel[(triton.cdiv(len(hidden), TOKENS), triton.cdiv(packed.outputs, OUTPUTS))](
        hidden, packed.codes, packed.scales, minimums, supers, super_minimums, result,
        len(hidden), packed.outputs, packed.inputs, packed.offset,
        packed.scales.shape[1], num_supers, packed.minimums is not None, packed.width, TOKENS, OUTPUTS,
    )  # fmt: skip
    return result


def largest_difference(device: torch.device, dtype: torch.dtype) -> float:
    """Between the kernel and torch on random weights of each width, relative to the largest result."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for width in WIDTHS:
        packed = quantize(torch.randn(3 * PANEL, 128, generator=generator), width).to(device)
        hidden = torch.randn(5, 128, generator=generator).to(device, dtype)
        expected = multiply_unpacked(packed, hidden).float()
        distance = (multiply(packed, hidden).float() - expected).abs().max() / expected.abs().max()
        found.append(float(distance))
    return max(found)
