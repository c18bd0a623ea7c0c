"""Quantization of plain weights to eight, six or four bits in groups, without calibration.

Eight and six bits: symmetric, groups of 64 or 32, scales of float16. Four bits: groups of 32 with a scale and a minimum
of eight bits each, and float32 numbers that multiply those of up to 32 groups; the range of a group is the one of
some candidates, each corrected by least squares, that loses least.
"""

from collections.abc import Iterator
from ctypes import CDLL, c_float

import torch
from torch import Tensor

from server.config_json import quantized_group, super_group
from server.errors import CannotStart
from server.model.quantization.packed_weight import PackedWeight, split

AT_A_TIME = 1 << 18  # weights that torch quantizes, in float32 with some copies
SHRUNK = (1.0, 0.9, 0.8)  # torch's candidates for a group's range, as shares of the whole
LARGEST = 127  # of a scale in eight bits
HALF_ERROR = 1e-3  # relative, of a scale that float16 holds well
LEAST_STEP = 1e-37  # whose reciprocal is finite
LARGEST_CODE = 15  # in four bits


def quantize(weight: Tensor, width: int, name: str = "weight", kernels: CDLL | None = None) -> PackedWeight:
    """Quantize [outputs, inputs], by the compiled CPU kernels or by torch.

    Raises CannotStart, with the name, for weights that are not finite.
    """
    weight = weight.contiguous() if weight.dtype in (torch.bfloat16, torch.float32) else weight.float()
    rounding = Rounding(weight, quantized_group(width, weight.shape[1]), None if weight.is_cuda else kernels)
    try:
        packed = _quantize_4(rounding) if width == 4 else _quantize_symmetric(rounding, width)
        return PackedWeight.join([packed], packed.outputs)
    except ValueError as error:
        raise CannotStart(f"{name} cannot be quantized: {error}") from error


def _quantize_symmetric(rounding: "Rounding", width: int) -> PackedWeight:
    middle = 2 ** (width - 1)
    scales = rounding.greatest() / (middle - 1)
    half = scales.half()
    is_exact = bool(((half.float() - scales).abs() <= HALF_ERROR * scales).all())
    scales = half if is_exact else scales
    shifts = torch.full_like(scales, middle, dtype=torch.float32)
    codes = rounding.codes(scales.float(), shifts, (1.0, 2.0 * middle - 1))
    return PackedWeight.pack(codes, scales, width=width, group=rounding.group, offset=middle, kernels=rounding.kernels)


def _quantize_4(rounding: "Rounding") -> PackedWeight:
    scales, minimums = rounding.fit()
    scales, super_scales = _in_eight_bits(scales, 1)
    minimums, super_minimums = _in_eight_bits(minimums, -LARGEST)
    each = scales.shape[1] // super_scales.shape[1]
    step = scales * super_scales.repeat_interleave(each, 1)
    start = minimums * super_minimums.repeat_interleave(each, 1)
    codes = rounding.codes(
        step, torch.where(step.abs() < LEAST_STEP, 0.0, start / _nonzero(step)), (0.0, float(LARGEST_CODE))
    )
    return PackedWeight.pack(
        codes,
        scales,
        width=4,
        group=rounding.group,
        minimums=minimums,
        super_scales=super_scales,
        super_minimums=super_minimums,
        kernels=rounding.kernels,
    )


class Rounding:
    """Weights [outputs, inputs] in groups; every result is [outputs, groups], codes are [outputs, inputs]."""

    def __init__(self, weight: Tensor, group: int, kernels: CDLL | None) -> None:
        self._weight = weight
        self.group = group
        self.kernels = kernels
        self._shape = len(weight), weight.shape[1] // group

    def greatest(self) -> Tensor:
        """The greatest magnitudes, in float32."""
        low, high = split(self._weight, -1, self.group).aminmax(dim=-1)
        return torch.maximum(high, -low).float()

    def fit(self) -> tuple[Tensor, Tensor]:
        """Scales and minimums for codes of four bits."""
        if self.kernels is None:
            found = [_fit(part) for part in self._parts()]
            return torch.cat([scales for scales, _ in found]), torch.cat([minimums for _, minimums in found])
        scales, minimums = torch.empty(self._shape), torch.empty(self._shape)
        threads = torch.get_num_threads()
        self.kernels.toolwire_fit(*self._groups(), scales.data_ptr(), minimums.data_ptr(), threads)
        return scales, minimums

    def codes(self, steps: Tensor, shifts: Tensor, bounds: tuple[float, float]) -> Tensor:
        """weight / step + shift, to nearest, within the bounds; the shift itself where the step is 0."""
        inverses = torch.where(steps.abs() < LEAST_STEP, 0.0, 1 / _nonzero(steps))
        if self.kernels is None:
            parts, first = [], 0
            for part in self._parts():
                inverse, shift = (one[first : first + len(part)].unsqueeze(-1) for one in (inverses, shifts))
                parts.append((part * inverse + shift).round_().clamp_(*bounds).to(torch.uint8).flatten(1))
                first += len(part)
            return torch.cat(parts)
        codes = torch.empty(self._weight.shape, dtype=torch.uint8)
        inverses, shifts = inverses.contiguous(), shifts.contiguous()
        self.kernels.toolwire_round(
            *self._groups(),
            self.group,
            inverses.data_ptr(),
            shifts.data_ptr(),
            (c_float * 2)(*bounds),
            codes.data_ptr(),
            torch.get_num_threads(),
        )
        return codes

    def _groups(self) -> tuple[bool, int, int]:
        """The weights as arguments of the kernels."""
        return self._weight.dtype == torch.bfloat16, self._weight.data_ptr(), self._shape[0] * self._shape[1]

    def _parts(self) -> Iterator[Tensor]:
        """Some outputs at a time, [outputs, groups, group] in float32."""
        rows = max(1, AT_A_TIME // self._weight.shape[1])
        for first in range(0, len(self._weight), rows):
            yield split(self._weight[first : first + rows].float(), -1, self.group)


def _fit(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minimums [outputs, groups] that lose least, in the sum of squares."""
    low, high = weights.aminmax(dim=-1, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2
    least = torch.full_like(low, torch.inf)
    scales, minimums = torch.zeros_like(low), -middle
    mean = weights.mean(-1, keepdim=True)
    for shrunk in SHRUNK:
        codes = (weights - middle) / _nonzero(half * shrunk * (2 / LARGEST_CODE)) + LARGEST_CODE / 2
        codes = codes.round_().clamp_(0, LARGEST_CODE)
        mean_code = codes.mean(-1, keepdim=True)
        centred = codes - mean_code
        scale = (centred * weights).sum(-1, keepdim=True) / _nonzero(centred.square().sum(-1, keepdim=True))
        minimum = mean_code * scale - mean
        lost = codes.mul_(scale).sub_(minimum).sub_(weights).square_().sum(-1, keepdim=True)
        is_better = lost < least
        least = torch.where(is_better, lost, least)
        scales, minimums = torch.where(is_better, scale, scales), torch.where(is_better, minimum, minimums)
    return scales.squeeze(-1), minimums.squeeze(-1)


def _in_eight_bits(numbers: Tensor, lowest: int) -> tuple[Tensor, Tensor]:
    """[outputs, groups] -> int8 of at least `lowest`, and the number of each super-group that multiplies them."""
    outputs, groups = numbers.shape
    each = numbers.view(outputs, -1, super_group(groups))
    supers = each.abs().amax(-1, keepdim=True) / LARGEST
    small = (each / _nonzero(supers)).round().clamp(lowest, LARGEST).to(torch.int8)
    return small.view(outputs, groups), supers.squeeze(-1)


def _nonzero(numbers: Tensor) -> Tensor:
    return torch.where(numbers == 0, 1.0, numbers)
