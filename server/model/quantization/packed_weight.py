"""Weights of few bits in groups, laid out once for the products of `cpu/cpp/quantized.h`.

Panels of sixteen outputs are cut into blocks of 32 inputs. A block holds four bytes for each output at a time, those of
an input and of the three behind it; a byte holds 8 / width codes, of every fourth input, the first in its lowest bits.
Codes of five and six bits are split: their low four bits as those of four, behind them the high ones, as codes of one
and two bits.
"""

from collections.abc import Iterable
from ctypes import CDLL
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from server.model import huge_pages

PANEL = 16  # outputs
BLOCK = 32  # inputs
QUAD = 4  # inputs, in adjacent bytes
PARTS = {4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}  # width of a code -> widths in which its bits are stored
SCALE_DTYPES = (torch.float16, torch.float32, torch.int8)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix [outputs, inputs] of unsigned codes; `group` inputs of an output share a scale, and a minimum if any.

        weight = scale * (code - offset)     without minimums
        weight = scale * code - minimum      with minimums

    Scales and minimums are stored as float16 or float32, or as int8 that the float32 numbers of super-groups multiply.
    """

    width: int  # bits of a code
    group: int
    inputs: int
    outputs: int
    offset: int
    codes: Tensor  # uint8 [panels, inputs / BLOCK, 64 * width]
    scales: Tensor  # [panels, groups, PANEL]
    minimums: Tensor | None  # likewise
    super_scales: Tensor | None  # [panels, super-groups, PANEL]
    super_minimums: Tensor | None
    input_bits: int = 16  # that the CPU kernels round inputs of products to: 8 or 16

    @staticmethod
    def pack(
        codes: Tensor,
        scales: Tensor,
        *,
        width: int,
        group: int,
        offset: int = 0,
        minimums: Tensor | None = None,
        super_scales: Tensor | None = None,
        super_minimums: Tensor | None = None,
        kernels: CDLL | None = None,
    ) -> "PackedWeight":
        """Lay out codes [outputs, inputs] of uint8 with scales and minimums [outputs, groups], super-groups likewise.

        `kernels`: the compiled CPU kernels, which are faster than torch. Raises ValueError for sizes that do not
        divide, and for scales that are not finite.
        """
        outputs, inputs = codes.shape
        optional = {"minimums": minimums, "super_scales": super_scales, "super_minimums": super_minimums}
        given = {"scales": scales} | {name: part for name, part in optional.items() if part is not None}
        if width not in PARTS or not fits(inputs, group):
            raise ValueError(f"codes of {width} bits in groups of {group} of {inputs} inputs are not computed")
        for name, part in given.items():
            divided = outputs == len(part) and inputs // group % part.shape[1] == 0
            if not divided or (not name.startswith("super_") and part.shape[1] != inputs // group):
                raise ValueError(f"{name} of shape {tuple(part.shape)} for {outputs} rows of {inputs // group} groups")
            if part.dtype not in SCALE_DTYPES or not bool(part.isfinite().all()):
                raise ValueError(f"{name} must be finite numbers of float16, float32 or int8")
        return PackedWeight(
            width=width,
            group=group,
            inputs=inputs,
            outputs=outputs,
            offset=offset,
            codes=_lay_out(codes, width) if kernels is None else _lay_out_by(kernels, codes.contiguous(), width),
            scales=_by_panels(scales),
            minimums=None if minimums is None else _by_panels(minimums),
            super_scales=None if super_scales is None else _by_panels(super_scales.float()),
            super_minimums=None if super_minimums is None else _by_panels(super_minimums.float()),
        )

    @staticmethod
    def join(pieces: Iterable["PackedWeight"], outputs: int) -> "PackedWeight":
        """The weight of this many outputs made of pieces of one form, of which only the last may end within a panel.

        One piece is in memory at a time, beside the whole, which is in huge pages.
        """
        whole: PackedWeight | None = None
        panel = 0
        for piece in pieces:
            if whole is None:
                panels = -(-outputs // PANEL)
                parts = {name: _room(part, panels) for name, part in piece.tensors().items()}
                whole = replace(piece, outputs=outputs, **parts)  # type: ignore[arg-type]
            for name, part in piece.tensors().items():
                whole.tensors()[name][panel : panel + len(part)] = part
            panel += len(piece.codes)
        assert whole is not None and panel == len(whole.codes), "the pieces have all outputs"
        return whole

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        names = ("codes", "scales", "minimums", "super_scales", "super_minimums")
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def to(self, device: torch.device) -> "PackedWeight":
        """The same on another device."""
        return replace(self, **{name: part.to(device) for name, part in self.tensors().items()})  # type: ignore[arg-type]

    @property
    def num_bytes(self) -> int:
        """Bytes of what is stored."""
        return sum(part.numel() * part.element_size() for part in self.tensors().values())

    def unpack(self, first: int = 0, count: int | None = None) -> Tensor:
        """Weights [count, inputs] in float32, from output `first` on, a multiple of PANEL; by default all."""
        last = self.outputs if count is None else min(self.outputs, first + count)
        own = slice(first // PANEL, -(-last // PANEL))
        codes = _codes(split(self.codes[own], -1, PANEL, QUAD), self.width)  # [panels, blocks, PANEL, BLOCK]
        codes = codes.transpose(1, 2).reshape(-1, PANEL, self.inputs // self.group, self.group)
        scales, minimums = (
            None if part is None else part.transpose(1, 2).unsqueeze(-1) for part in self._multipliers(own)
        )
        assert scales is not None
        return self._values(codes, scales, minimums).reshape(-1, self.inputs)[: last - first]

    def part(self, first: int, count: int) -> "PackedWeight":
        """Some outputs, which share the memory; both numbers are multiples of PANEL."""
        own = slice(first // PANEL, (first + count) // PANEL)
        parts = {name: part[own] for name, part in self.tensors().items()}
        return replace(self, outputs=count, **parts)  # type: ignore[arg-type]

    def rows(self, ids: Tensor) -> Tensor:
        """Weights of these outputs, [ids, inputs] in float32."""
        panels, columns = ids // PANEL, ids % PANEL
        stored = split(self.codes, -1, PANEL, QUAD)[panels, :, :, columns]  # [ids, blocks, steps, QUAD]
        places = torch.arange(len(ids), device=ids.device)
        codes = _codes(stored.unsqueeze(3), self.width)
        codes = codes.reshape(len(ids), self.inputs // self.group, self.group)
        scales, minimums = (
            None if part is None else part[places, :, columns].unsqueeze(-1) for part in self._multipliers(panels)
        )
        assert scales is not None
        return self._values(codes, scales, minimums).flatten(1)

    def _multipliers(self, panels: slice | Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Scales and minimums of these panels [panels, groups, PANEL] in float32."""
        return (
            _multiplied(self.scales, self.super_scales, panels),
            _multiplied(self.minimums, self.super_minimums, panels),
        )

    def _values(self, codes: Tensor, scales: Tensor, minimums: Tensor | None) -> Tensor:
        if minimums is None:
            return (codes.float() - self.offset) * scales
        return torch.addcmul(-minimums, codes.float(), scales)


def split(tensor: Tensor, *sizes: int) -> Tensor:
    """The last dimension as several of these sizes."""
    return tensor.reshape(*tensor.shape[:-1], *sizes)


def fits(inputs: int, group: int) -> bool:
    """Whether rows of this length can be packed in such groups."""
    return inputs % BLOCK == 0 and group > 0 and inputs % group == 0 and (group == 16 or group % BLOCK == 0)


def _multiplied(parts: Tensor | None, supers: Tensor | None, panels: slice | Tensor) -> Tensor | None:
    if parts is None:
        return None
    own = parts[panels].float()
    if supers is None:
        return own
    each = parts.shape[1] // supers.shape[1]
    return own * supers[panels].float().repeat_interleave(each, 1)


def _by_panels(parts: Tensor) -> Tensor:
    """[outputs, n] -> [panels, n, PANEL], with zeros behind the last output."""
    padded = torch.nn.functional.pad(parts, (0, 0, 0, -len(parts) % PANEL))
    return padded.view(-1, PANEL, padded.shape[1]).transpose(1, 2).contiguous()


def _room(part: Tensor, panels: int) -> Tensor:
    """Memory for a part like this one, of this many panels."""
    shape = (panels, *part.shape[1:])
    return part.new_empty(shape) if part.is_cuda else huge_pages.empty(shape, part.dtype)


def _lay_out(codes: Tensor, width: int) -> Tensor:
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -len(codes) % PANEL))
    blocks = padded.view(len(padded) // PANEL, PANEL, -1, BLOCK).transpose(1, 2)  # [panels, blocks, PANEL, BLOCK]
    parts, shift = [], 0
    for bits in PARTS[width]:
        parts.append(_bytes((blocks >> shift) & (2**bits - 1), bits))
        shift += bits
    return torch.cat(parts, -1)


def _lay_out_by(kernels: CDLL, codes: Tensor, width: int) -> Tensor:
    outputs, inputs = codes.shape
    words = torch.empty(-(-outputs // PANEL), inputs // BLOCK, 64 * width, dtype=torch.uint8)
    kernels.toolwire_pack(codes.data_ptr(), outputs, inputs, width, words.data_ptr(), torch.get_num_threads())
    return words


def _bytes(codes: Tensor, bits: int) -> Tensor:
    """Codes [panels, blocks, PANEL, BLOCK] of few bits -> their bytes, [panels, blocks, 64 * bits]."""
    parts = split(codes, bits, 8 // bits, QUAD).permute(0, 1, 3, 2, 5, 4)  # behind: steps, QUAD, codes in a byte
    packed: Tensor = parts[..., 0].clone(memory_format=torch.contiguous_format)
    for place in range(1, 8 // bits):
        packed |= parts[..., place] << (bits * place)
    return packed.flatten(2)


def _codes(stored: Tensor, width: int) -> Tensor:
    """Bytes [n, blocks, steps, outputs, QUAD] -> codes [n, blocks, outputs, BLOCK]."""
    codes, step, shift = None, 0, 0
    for bits in PARTS[width]:
        own = stored[:, :, step : step + bits]
        places = [(own >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
        part = torch.stack(places, -1).permute(0, 1, 3, 2, 5, 4).flatten(3)
        codes = part if codes is None else codes | (part << shift)
        step, shift = step + bits, shift + bits
    assert codes is not None
    return codes
