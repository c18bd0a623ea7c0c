"""Comparison of the compiled kernels' products of few bits with float64, at every start: a part of `self_check.py`."""

from collections.abc import Iterator
from ctypes import CDLL
from dataclasses import replace

import torch
from torch import Tensor

from server.model.cpu.native import NativeHead
from server.model.quantization.linear import QuantizedLinear
from server.model.quantization.packed_weight import BLOCK, PackedWeight, split

FORMS = (  # every width, every type of scales with minimums and without, and both sizes of groups
    (4, torch.float32, 32),
    (4, torch.int8, 32),
    (5, torch.float16, 32),
    (6, torch.int8, 16),
    (8, torch.float32, 16),
    (8, torch.float16, 544),
)
INPUTS, OUTPUTS = 544, 39  # more than one stretch of blocks; two full panels and one that is not
COUNTS = (1, 2, 3, 4, 5, 8, 9, 11, 13)  # tokens: of every tile, unpacked and not
INPUT_BITS = (16, 8)
ROUNDED = 5e-5  # of the sum of magnitudes: inputs are rounded to sixteen bits; or to eight, as `in_bytes` does, too
LARGEST = 127.0  # of an input in eight bits
LEAST = 1e-30  # magnitudes that are not rounded to 0


def differing_products(library: CDLL) -> Iterator[str]:
    """The forms of products that differ from float64."""
    for width, scales, group in FORMS:
        packed = random_weight(width, scales, group, INPUTS, OUTPUTS)
        for bits in INPUT_BITS:
            if not products_agree(library, replace(packed, input_bits=bits)):
                yield f"products of {width} bits with inputs of {bits}"


def products_agree(library: CDLL, packed: PackedWeight) -> bool:
    """Whether products are close, of equal bits for any number of tokens, and greedy ids are their maxima."""
    inputs, weights = torch.randn(max(COUNTS), packed.inputs), packed.unpack().double()
    multiplied = (in_bytes(inputs) if packed.input_bits == 8 else inputs).double()
    expected, magnitude = multiplied @ weights.T, multiplied.abs() @ weights.abs().T
    head = NativeHead(QuantizedLinear(packed), library)
    found = head(inputs).clone()
    is_close = bool(((found - expected).abs() <= ROUNDED * magnitude).all())
    is_equal = all(torch.equal(head(inputs[:count]), found[:count]) for count in COUNTS)
    return is_close and is_equal and torch.equal(head.greedy_ids(inputs), found.argmax(-1))


def in_bytes(inputs: Tensor) -> Tensor:
    """Inputs [tokens, size] in float32 as the kernels round them to eight bits, with a scale for each block."""
    blocks = split(inputs, -1, BLOCK)
    most = blocks.abs().amax(-1, keepdim=True)
    scales = torch.where(most > LEAST, LARGEST / most, 0.0)
    return ((blocks * scales).round() * (most / LARGEST)).flatten(1)


def random_weight(width: int, dtype: torch.dtype, group: int, inputs: int, outputs: int) -> PackedWeight:
    """Codes of all values; minimums except with float32, super-groups with int8."""
    groups = inputs // group
    codes = torch.randint(0, 2**width, (outputs, inputs), dtype=torch.uint8)
    if dtype == torch.int8:
        scales, minimums = (torch.randint(-128, 128, (outputs, groups), dtype=dtype) for _ in range(2))
        num_supers = groups // 2 if groups % 2 == 0 else groups
        supers, super_minimums = (torch.rand(outputs, num_supers) for _ in range(2))
        return PackedWeight.pack(
            codes,
            scales,
            width=width,
            group=group,
            minimums=minimums,
            super_scales=supers,
            super_minimums=super_minimums,
        )
    scales, minimums = (torch.rand(outputs, groups).to(dtype) for _ in range(2))
    if dtype == torch.float32:
        return PackedWeight.pack(codes, scales, width=width, group=group, offset=2 ** (width - 1))
    return PackedWeight.pack(codes, scales, width=width, group=group, minimums=minimums)
