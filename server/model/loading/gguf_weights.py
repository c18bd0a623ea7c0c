"""Weights of a GGUF file, mapped into memory and read one at a time when they are asked for.

They are multiplied out, or, where the kernels multiply their codes as they are, laid out for them.
"""

import math
from collections.abc import Container, Iterator, Mapping
from ctypes import CDLL
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.errors import CannotStart
from server.gguf.header import GgufTensor, read_header
from server.gguf.weights import RowOrder, StoredWeight, stored_weights
from server.model.layers.packed_linear import release_mapped_pages
from server.model.loading.gguf_blocks import UNPACKINGS, unpack
from server.model.quantization.packed_weight import PANEL, PackedWeight

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PIECE = 1 << 22  # numbers multiplied out at a time, in float32


class GgufWeights(Mapping[str, Tensor]):
    """The weights of one file by transformers' names, each read as `dtype` whenever it is looked up."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        header = read_header(path)
        self.path = path
        self.dtype = dtype
        self.stored = {weight.name: weight for weight in stored_weights(header)}
        self._files = {file: _map(file) for file in {tensor.path for tensor in header.tensors}}

    def __getitem__(self, name: str) -> Tensor:
        return self._read(self.stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CannotStart unless the file holds weights of these names and shapes, and no others."""
        shapes = {name: weight.shape for name, weight in self.stored.items()}
        for name in (*expected, *shapes):
            if name not in shapes:
                raise CannotStart(f"{self.path} holds no weights for {name}")
            if name not in expected:
                raise CannotStart(f"{self.path} holds {name}, which a model of this configuration has not")
            if shapes[name] != expected[name]:
                raise CannotStart(
                    f"{self.path} holds {name} of shape {list(shapes[name])}; its configuration says "
                    f"{list(expected[name])}"
                )

    def packed(self, name: str, kernels: CDLL | None) -> PackedWeight:
        """The codes of a weight as they are stored, whose rows are those of its tensors; `kernels` lay them out.

        Without kernels torch does. Raises CannotStart for scales that are not finite.
        """
        weight = self.stored[name]
        type_name = weight.tensors[0].type.name
        pieces = (unpack(type_name, rows).pack(kernels) for rows in self._some_rows(weight))
        try:
            return PackedWeight.join(pieces, math.prod(weight.shape[:-1]))
        except ValueError as error:
            raise CannotStart(f"{self.path}: {weight.tensors[0].name} cannot be read: {error}") from error
        finally:
            for tensor in weight.tensors:
                release_mapped_pages(self._raw(tensor))

    def _some_rows(self, weight: StoredWeight) -> Iterator[Tensor]:
        """Rows of blocks, some at a time; of experts in two tensors the first one's of both, then the next one's."""
        parts = [self._raw(tensor).view(*tensor.shape[:-1], -1) for tensor in weight.tensors]
        if weight.order is not None:
            parts = [self._reordered(weight.name, part, weight.order) for part in parts]
        if len(parts) > 1:
            matrices = [matrix for of_expert in zip(*parts, strict=True) for matrix in of_expert]
        else:
            matrices = [parts[0].flatten(0, -2)]
        step = max(PANEL, PIECE // weight.shape[-1] // PANEL * PANEL)
        for rows in matrices:
            yield from (rows[at : at + step] for at in range(0, len(rows), step))

    def lazy(self, kept: Container[str] = ()) -> dict[str, "LazyWeight"]:
        """The weights for a loader that indexes each when it needs it; those `kept` are zeros that take no memory."""
        return {name: LazyWeight(self, name, name in kept) for name in self}

    def _read(self, weight: StoredWeight) -> Tensor:
        """One weight; a view of the mapped file where that is of the wanted type already."""
        raw = [self._raw(tensor) for tensor in weight.tensors]
        dtype = self.dtype if weight.arithmetic == "none" else torch.float32
        parts = [_multiply_out(tensor, part, dtype) for tensor, part in zip(weight.tensors, raw, strict=True)]
        found = torch.cat(parts, -2) if len(parts) > 1 else parts[0]
        if weight.arithmetic == "one less":
            found = found - 1
        elif weight.arithmetic == "log of minus":
            found = torch.log(-found)
        if weight.order is not None:
            found = self._reordered(weight.name, found, weight.order)
        found = found.to(self.dtype).view(weight.shape)
        if found.data_ptr() != raw[0].data_ptr():
            for part in raw:
                release_mapped_pages(part)
        return found

    def _raw(self, tensor: GgufTensor) -> Tensor:
        return self._files[tensor.path][tensor.offset : tensor.offset + tensor.num_bytes]

    def _reordered(self, name: str, weight: Tensor, order: RowOrder) -> Tensor:
        if order.of_columns:
            return self._reordered(name, weight.T, replace(order, of_columns=False)).T.contiguous()
        behind = weight[order.first :]
        known = math.prod(side for side in order.sides if side > 0)
        if not len(behind) or not known or len(behind) % known:
            raise CannotStart(f"{self.path} holds {name} with {len(weight)} rows, which its heads do not divide")
        split = behind.reshape(*order.sides, *behind.shape[1:]).transpose(order.swapped, order.swapped + 1)
        return torch.cat((weight[: order.first], split.reshape(behind.shape)))


@dataclass(frozen=True, slots=True)
class LazyWeight:
    """A weight that is read when it is indexed, as the slices of safetensors files are."""

    weights: GgufWeights
    name: str
    is_replaced: bool  # by its codes, as soon as it is read

    def __getitem__(self, key: Any) -> Tensor:
        if self.is_replaced:
            return torch.zeros((), dtype=self.weights.dtype).expand(self.weights.stored[self.name].shape)[key]
        return self.weights[self.name][key]


def _multiply_out(tensor: GgufTensor, raw: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of a tensor in this type; the bytes themselves where they are of it."""
    if tensor.type.name not in UNPACKINGS:
        return raw.view(PLAIN_TYPES[tensor.type.name]).view(tensor.shape).to(dtype)
    columns = tensor.shape[-1]
    rows = raw.view(-1, columns // tensor.type.elements * tensor.type.num_bytes)
    found = torch.empty((len(rows), columns), dtype=dtype)
    step = max(1, PIECE // columns)
    for at in range(0, len(rows), step):
        found[at : at + step] = unpack(tensor.type.name, rows[at : at + step]).multiply_out()
    return found.view(tensor.shape)


def _map(path: Path) -> Tensor:
    """The bytes of a file; pages are read when they are used, and a change of them stays in memory."""
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
