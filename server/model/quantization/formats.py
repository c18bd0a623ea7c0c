"""Weights of four and eight bits in checkpoints of GPTQ, AWQ and compressed-tensors, laid out for the kernels.

Names, bit orders and zero points are those that AutoGPTQ, AutoAWQ and compressed-tensors write. Codes are packed into
int32, the first in the lowest bits, along the inputs (GPTQ, compressed-tensors) or the outputs (AWQ).
"""

import logging
from collections.abc import Callable, Mapping
from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor

from server.errors import CannotStart
from server.model.quantization.packed_weight import PackedWeight, fits, split

log = logging.getLogger(__name__)

Weights = dict[str, Tensor | PackedWeight]
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # of eight outputs, their places in an int32
WIDTHS = (4, 8)


def can_read(quantization: Mapping[str, Any]) -> bool:
    """Whether a checkpoint with this `quantization_config` is read here; its weights may still have other sizes."""
    return _reader(quantization) is not None


def lay_out(quantization: Mapping[str, Any], tensors: Mapping[str, Tensor], kernels: CDLL | None = None) -> Weights:
    """The checkpoint's weights by the names they would have unquantized; others as they are.

    `kernels`: the compiled CPU kernels, which are faster than torch. Raises CannotStart if a tensor lacks what belongs
    to it, or has another size.
    """
    reader = _reader(quantization)
    assert reader is not None
    stem, read = reader
    modules = {name.removesuffix(stem) for name in tensors if name.endswith(stem)}
    weights: Weights = {}
    own: dict[str, dict[str, Tensor]] = {module: {} for module in modules}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if module in modules and last != "bias":
            own[module][last] = tensor
        else:
            weights[name] = tensor
    for module, parts in own.items():
        try:
            weights[f"{module}.weight"] = read(quantization, parts, kernels)
        except (KeyError, ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
            raise CannotStart(f"{module}: its quantized weight cannot be read: {error!r}") from error
    return weights


Reader = Callable[[Mapping[str, Any], Mapping[str, Tensor], CDLL | None], PackedWeight | Tensor]


def _reader(quantization: Mapping[str, Any]) -> tuple[str, Reader] | None:
    """The end of the names of packed tensors, and what reads one with those that belong to it."""
    method = quantization.get("quant_method")
    if method == "gptq" and quantization.get("bits") in WIDTHS:
        return ".qweight", _read_gptq
    if method == "awq" and quantization.get("bits") == 4 and quantization.get("version", "gemm") == "gemm":
        return ".qweight", _read_awq
    if method == "compressed-tensors" and _compressed_width(quantization) in WIDTHS:
        match quantization.get("format"):
            case "pack-quantized":
                return ".weight_packed", _read_compressed
            case "int-quantized":
                return ".weight_scale", _read_int8
    return None


def _compressed_width(quantization: Mapping[str, Any]) -> int | None:
    match quantization.get("config_groups"):
        case {**groups} if len(groups) == 1:
            match next(iter(groups.values())):
                case {"weights": {"num_bits": int(width), "type": "int"}}:
                    return width
    return None


def _read_gptq(
    quantization: Mapping[str, Any], parts: Mapping[str, Tensor], kernels: CDLL | None
) -> PackedWeight | Tensor:
    width = int(quantization["bits"])
    codes, zeros = _codes(parts["qweight"].T, width), _codes(parts["qzeros"], width).T
    if quantization.get("checkpoint_format", "gptq") == "gptq":  # which stores one less
        zeros = (zeros + 1) & (2**width - 1)
    return _packed(codes, parts["scales"].T, zeros, width, kernels, parts.get("g_idx"))


def _read_awq(
    quantization: Mapping[str, Any], parts: Mapping[str, Tensor], kernels: CDLL | None
) -> PackedWeight | Tensor:
    codes, zeros = (
        split(_codes(parts[name], 4), -1, 8)[..., AWQ_ORDER].flatten(-2).T for name in ("qweight", "qzeros")
    )
    return _packed(codes, parts["scales"].T, zeros, 4, kernels)


def _read_compressed(
    quantization: Mapping[str, Any], parts: Mapping[str, Tensor], kernels: CDLL | None
) -> PackedWeight | Tensor:
    width = _compressed_width(quantization)
    assert width is not None
    outputs, inputs = parts["weight_shape"].tolist()
    codes, scales = _codes(parts["weight_packed"], width)[:, :inputs], parts["weight_scale"]
    if "weight_zero_point" in parts:
        zeros = _codes(parts["weight_zero_point"].T, width).T[:outputs]
    else:
        zeros = torch.full(scales.shape, 2 ** (width - 1), dtype=torch.uint8)
    return _packed(codes, scales, zeros, width, kernels, parts.get("weight_g_idx"))


def _read_int8(
    quantization: Mapping[str, Any], parts: Mapping[str, Tensor], kernels: CDLL | None
) -> PackedWeight | Tensor:
    codes, scales = (parts["weight"].to(torch.int16) + 128).to(torch.uint8), parts["weight_scale"]
    zeros = parts.get("weight_zero_point")
    zeros = torch.zeros(scales.shape) if zeros is None else zeros
    return _packed(codes, scales, zeros.to(torch.int16) + 128, 8, kernels)


def _codes(words: Tensor, width: int) -> Tensor:
    """int32 [n, m] -> uint8 [n, m * 32 / width]."""
    codes = words.contiguous().view(torch.uint8)
    return codes if width == 8 else torch.stack((codes & 15, codes >> 4), -1).flatten(-2)


def _packed(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    width: int,
    kernels: CDLL | None,
    places: Tensor | None = None,
) -> PackedWeight | Tensor:
    """Codes [outputs, inputs], scales and zero points [outputs, groups]; `places`: the group of each input.

    Inputs in another order than that of their groups, and rows that do not divide, are multiplied out.
    """
    outputs, inputs = codes.shape
    if scales.shape != zeros.shape or len(scales) != outputs or inputs % scales.shape[1]:
        raise ValueError(f"scales {tuple(scales.shape)} and zero points {tuple(zeros.shape)} for {tuple(codes.shape)}")
    group = inputs // scales.shape[1]
    in_order = torch.arange(inputs) // group
    if (places is not None and not torch.equal(places.long(), in_order)) or not fits(inputs, group):
        log.warning("a weight of %d bits in groups of another order takes 16 bits instead", width)
        own = in_order if places is None else places.long()
        return (codes.float() - zeros.float()[:, own]) * scales.float()[:, own]
    scales = scales if scales.dtype in (torch.float16, torch.float32) else scales.float()
    offset = int(zeros[0, 0])
    if bool((zeros == offset).all()):
        packed = PackedWeight.pack(codes, scales, width=width, group=group, offset=offset, kernels=kernels)
    else:
        minimums = scales.float() * zeros.float()
        packed = PackedWeight.pack(codes, scales.float(), width=width, group=group, minimums=minimums, kernels=kernels)
    return PackedWeight.join([packed], outputs)
