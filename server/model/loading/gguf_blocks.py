"""Numbers of a GGUF file's blocks: small codes with scales, as ggml's `ggml-common.h` lays them out.

    number = scale * (code - offset)        or        scale * code - minimum
    scale, minimum: of a group of 16 or 32 codes; in the K types 4- to 8-bit integers times a half-precision number of
    the block of 256

Codes are unpacked here without rounding, and laid out for the kernels as they are. `multiply_out` computes in float32,
in the order of ggml's own code, so that its results equal those of llama.cpp and of the `gguf` package bit by bit.
"""

from collections.abc import Callable, Mapping
from ctypes import CDLL
from dataclasses import dataclass

import torch
from torch import Tensor

from server.model.quantization.packed_weight import PackedWeight


@dataclass(frozen=True, slots=True)
class Codes:
    """Rows of codes; scales and minimums are float16, or int8 with factors."""

    width: int  # bits of a code
    offset: int
    codes: Tensor  # uint8 [rows, columns]
    scales: Tensor  # [rows, groups]
    minimums: Tensor | None = None  # [rows, groups]
    scale_factors: Tensor | None = None  # float16 [rows, blocks]
    minimum_factors: Tensor | None = None

    def multiply_out(self) -> Tensor:
        """The numbers, float32 [rows, columns]."""
        rows, columns = self.codes.shape
        grouped = (self.codes.float() - self.offset if self.offset else self.codes.float()).view(
            rows, self.scales.shape[1], -1
        )
        found = grouped * _factored(self.scales, self.scale_factors)[..., None]
        if self.minimums is not None:
            found -= _factored(self.minimums, self.minimum_factors)[..., None]
        return found.view(rows, columns)

    def pack(self, kernels: CDLL | None) -> PackedWeight:
        """The same numbers in the kernels' layout. Raises ValueError for scales that are not finite."""
        return PackedWeight.pack(
            self.codes,
            self.scales,
            width=self.width,
            group=self.codes.shape[1] // self.scales.shape[1],
            offset=self.offset,
            minimums=self.minimums,
            super_scales=self.scale_factors,
            super_minimums=self.minimum_factors,
            kernels=kernels,
        )


def unpack(type_name: str, raw: Tensor) -> Codes:
    """The codes of rows of blocks: uint8 [rows, bytes of a row]."""
    unpacking = UNPACKINGS[type_name]
    rows = raw.shape[0]
    return unpacking.unpack(raw.view(rows, -1, unpacking.num_bytes))


def _factored(small: Tensor, factors: Tensor | None) -> Tensor:
    """Scales or minimums in float32 [rows, groups]."""
    if factors is None:
        return small.float()
    rows, blocks = factors.shape
    return (factors.float()[..., None] * small.float().view(rows, blocks, -1)).view(rows, -1)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The half-precision number at byte `at` of each block: [rows, blocks]."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16).squeeze(-1)


def _flat(codes: Tensor) -> Tensor:
    return codes.reshape(codes.shape[0], -1)


def _nibbles(packed: Tensor) -> Tensor:
    """Low halves of the bytes of each block, then their high halves."""
    return torch.cat((packed & 15, packed >> 4), -1)


def _bits(packed: Tensor, count: int, width: int) -> Tensor:
    """Fields of `width` bits at `count` places of each byte: those of the first place of all bytes, then the next."""
    return torch.cat([(packed >> (width * place)) & ((1 << width) - 1) for place in range(count)], -1)


def _q8_0(blocks: Tensor) -> Codes:
    return Codes(8, 128, _flat(blocks[..., 2:] ^ 128), _half(blocks, 0))  # signed, seen from -128 on


def _q4_0(blocks: Tensor) -> Codes:
    return Codes(4, 8, _flat(_nibbles(blocks[..., 2:])), _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Codes:
    return Codes(4, 0, _flat(_nibbles(blocks[..., 4:])), _half(blocks, 0), -_half(blocks, 2))


def _fifth_bits(packed: Tensor) -> Tensor:
    """Bit i of 32 for each code i of a block: [rows, blocks, 32]."""
    return torch.stack([(packed >> place) & 1 for place in range(8)], -1).flatten(-2)


def _q5_0(blocks: Tensor) -> Codes:
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6]) << 4
    return Codes(5, 16, _flat(codes), _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Codes:
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8]) << 4
    return Codes(5, 0, _flat(codes), _half(blocks, 0), -_half(blocks, 2))


def _six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minimums of 6 bits from 12 bytes: int8 [rows, groups] each.

    Bytes 0-3 and 4-7 hold the first four of each; their upper two bits and bytes 8-11 the other four.
    """
    low, middle, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat((low & 63, (high & 15) | (low >> 6) << 4), -1)
    minimums = torch.cat((middle & 63, high >> 4 | (middle >> 6) << 4), -1)
    return _flat(scales).to(torch.int8), _flat(minimums).to(torch.int8)


def _q4_k(blocks: Tensor) -> Codes:
    rows, count, _ = blocks.shape
    codes = _nibbles(blocks[..., 16:].reshape(rows, count, 4, 32))  # 4 times 64 codes from 32 bytes
    scales, minimums = _six_bit_pairs(blocks[..., 4:16])
    return Codes(4, 0, _flat(codes), scales, minimums, _half(blocks, 0), _half(blocks, 2))


def _q5_k(blocks: Tensor) -> Codes:
    rows, count, _ = blocks.shape
    low = _nibbles(blocks[..., 48:].reshape(rows, count, 4, 32)).reshape(rows, count, 256)
    codes = low | _bits(blocks[..., 16:48], 8, 1) << 4
    scales, minimums = _six_bit_pairs(blocks[..., 4:16])
    return Codes(5, 0, _flat(codes), scales, minimums, _half(blocks, 0), _half(blocks, 2))


def _q6_k(blocks: Tensor) -> Codes:
    rows, count, _ = blocks.shape
    low = _nibbles(blocks[..., :128].reshape(rows, count, 2, 64))  # 2 times 128 codes
    high = _bits(blocks[..., 128:192].reshape(rows, count, 2, 32), 4, 2)
    scales = blocks[..., 192:208].contiguous().view(torch.int8)
    return Codes(6, 32, _flat(low | high << 4), _flat(scales), None, _half(blocks, 208))


@dataclass(frozen=True, slots=True)
class Unpacking:
    """Size of a type's blocks, and the function that unpacks rows of them: uint8 [rows, blocks, num_bytes]."""

    num_bytes: int
    unpack: Callable[[Tensor], Codes]


UNPACKINGS: Mapping[str, Unpacking] = {
    "Q8_0": Unpacking(34, _q8_0),
    "Q4_0": Unpacking(18, _q4_0),
    "Q4_1": Unpacking(20, _q4_1),
    "Q5_0": Unpacking(22, _q5_0),
    "Q5_1": Unpacking(24, _q5_1),
    "Q4_K": Unpacking(144, _q4_k),
    "Q5_K": Unpacking(176, _q5_k),
    "Q6_K": Unpacking(210, _q6_k),
}
