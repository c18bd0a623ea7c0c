"""Products with weights of few bits by the compiled kernels of `cpp/quantized.h`."""

import ctypes
import functools
from ctypes import CDLL

import torch
from torch import Tensor

from server.model.cpu.library import QuantizedStruct
from server.model.quantization.linear import LookUp, Product, multiply_unpacked
from server.model.quantization.packed_weight import PackedWeight

SCALE_TYPES = {torch.float16: 0, torch.float32: 1, torch.int8: 2}  # as in the kernels


def choose_product(library: CDLL | None) -> Product:
    """The product of quantized layers: by these kernels, or by torch."""
    return multiply_unpacked if library is None else functools.partial(project, library)


def choose_look_up(library: CDLL | None) -> LookUp:
    """How quantized embeddings read rows: by these kernels, or by torch."""
    return PackedWeight.rows if library is None else functools.partial(look_up, library)


class Described:
    """A packed weight as the kernels read it: like a tensor, it must live as long as its address is used."""

    def __init__(self, packed: PackedWeight) -> None:
        self._packed = packed
        supers, super_minimums = packed.super_scales, packed.super_minimums
        self.struct = QuantizedStruct(
            width=packed.width,
            inputs=packed.inputs,
            outputs=packed.outputs,
            group=packed.group,
            offset=packed.offset,
            scale_type=SCALE_TYPES[packed.scales.dtype],
            super_group=1 if supers is None else packed.scales.shape[1] // supers.shape[1],
            input_bits=packed.input_bits,
            codes=packed.codes.data_ptr(),
            scales=packed.scales.data_ptr(),
            minimums=None if packed.minimums is None else packed.minimums.data_ptr(),
            super_scales=None if supers is None else supers.data_ptr(),
            super_minimums=None if super_minimums is None else super_minimums.data_ptr(),
        )

    def data_ptr(self) -> int:
        """The address of the description, with the mark by which the kernels know it."""
        return ctypes.addressof(self.struct) | 1


def look_up(library: CDLL, packed: PackedWeight, ids: Tensor) -> Tensor:
    """As `PackedWeight.rows`, up to rounding."""
    assert ids.numel() == 0 or 0 <= int(ids.min()) <= int(ids.max()) < packed.outputs, "ids are those of outputs"
    described, ids, rows = Described(packed), ids.long().contiguous(), torch.empty(len(ids), packed.inputs)
    weights = ctypes.addressof(described.struct)
    library.toolwire_read(weights, ids.data_ptr(), len(ids), rows.data_ptr(), torch.get_num_threads())
    return rows


def project(library: CDLL, packed: PackedWeight, hidden: Tensor) -> Tensor:
    """[tokens, inputs] -> float32 [tokens, outputs]; each output is the same whatever the number of tokens."""
    hidden = hidden.contiguous() if hidden.dtype in (torch.bfloat16, torch.float32) else hidden.float()
    assert hidden.shape[1] == packed.inputs
    weights, results = Described(packed), torch.empty(len(hidden), packed.outputs)
    library.toolwire_project(
        hidden.dtype == torch.bfloat16,
        hidden.data_ptr(),
        len(hidden),
        packed.inputs,
        weights.data_ptr(),
        packed.outputs,
        results.data_ptr(),
        torch.get_num_threads(),
    )
    return results
