"""Size of a checkpoint's loaded weights, from the headers of its safetensors files.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, a JSON object from
tensor names to dtype, shape and place; see the format's description in the safetensors repository.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from server.config_json import bare_name
from server.errors import CannotStart
from server.memory.shape import DTYPE_BYTES

LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000  # the reference reader's own limit
STORED_BYTES: Mapping[str, float] = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F4": 0.5, "F6_E2M3": 0.75, "F6_E3M2": 0.75,
}  # fmt: skip
CAST = ("F64", "F32", "BF16", "F16")  # loading casts these to the wanted type; integers and float8 stay as they are
UNUSED = ("mtp.", "visual.", "model.visual.")  # draft heads and vision towers, which are not loaded
FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALE_SUFFIX = "_scale_inv"  # of a float8 weight: one number a block of 128 x 128
SCALE_BYTES = 4  # of an int8 weight: one float32 a row


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header."""

    name: str
    dtype: str  # as the format spells it: BF16, F32, I8, …
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def read_headers(folder: Path) -> tuple[Tensor, ...]:
    """Every tensor of the folder's safetensors files; raises CannotStart if there is none or one is broken."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CannotStart(f"{folder} has no *.safetensors file; other weight formats are not read")
    return tuple(tensor for path in paths for tensor in _read_header(path))


def weight_bytes(tensors: Iterable[Tensor], *, dtype: str, quantize: str, tied: bool, keeps_float8: bool = True) -> int:
    """Bytes of the weights after loading as `dtype` ("float32", "bfloat16", "float16").

    With `quantize` "int8" every matrix inside the layers takes one byte an element and a scale a row. A tied output
    matrix is counted once, also where the file holds it twice. Unless `keeps_float8`, float8 weights are multiplied
    out to `dtype` and their scales go.
    """
    if not keeps_float8:
        tensors = _multiplied_out(tensors)
    return sum(
        _loaded_bytes(tensor, dtype, quantize)
        for tensor in tensors
        if not tensor.name.startswith(UNUSED) and not (tied and tensor.name.endswith("lm_head.weight"))
    )


def _multiplied_out(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        if not tensor.name.endswith(SCALE_SUFFIX):
            yield replace(tensor, dtype="BF16") if tensor.dtype in FLOAT8 else tensor


def is_packable(tensor: Tensor) -> bool:
    """Whether int8 is for this tensor: a projection of a layer. Experts are stacked when loaded and stay as they are,
    and so do embeddings, the output matrix, norms, convolutions and routers."""
    inside = ".layers." in f".{tensor.name}" and ".experts." not in tensor.name and tensor.dtype in CAST
    other = "norm" in tensor.name or "conv1d" in tensor.name or tensor.name.endswith("mlp.gate.weight")
    return inside and len(tensor.shape) == 2 and not other


def _loaded_bytes(tensor: Tensor, dtype: str, quantize: str) -> int:
    if quantize == "int8" and is_packable(tensor):
        return tensor.count + tensor.count // tensor.shape[-1] * SCALE_BYTES
    size = DTYPE_BYTES[dtype] if tensor.dtype in CAST else STORED_BYTES[tensor.dtype]
    return math.ceil(tensor.count * size)


def _read_header(path: Path) -> list[Tensor]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 2 <= length <= LARGEST_HEADER:
                raise CannotStart(f"{path} is no safetensors file: its header would be {length} bytes long")
            return parse_header(file.read(length))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise CannotStart(f"cannot read the header of {path}: {error}") from error


def parse_header(raw: bytes) -> list[Tensor]:
    """The tensors that a header names; raises ValueError, KeyError or TypeError if it is malformed."""
    entries = json.loads(raw)
    entries.pop("__metadata__", None)
    tensors = [Tensor(bare_name(name), entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()]
    unknown = sorted({tensor.dtype for tensor in tensors} - set(STORED_BYTES))
    if unknown:
        raise ValueError(f"unknown tensor type {', '.join(unknown)}")
    return tensors
