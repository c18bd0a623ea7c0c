"""Size of a checkpoint's loaded weights, from the headers of its safetensors files or of its GGUF file.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, a JSON object from
tensor names to dtype, shape and place; see the format's description in the safetensors repository.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from server.adapter_folder import PartName, weight_part
from server.config_json import (
    QUANTIZED_WIDTHS,
    bare_name,
    can_be_packed,
    head_width,
    is_quantizable,
    is_quantizable_expert,
    is_requantized,
    kept_bytes,
    kept_codes,
    quantized_bytes,
)
from server.errors import CannotStart
from server.gguf.header import TYPES, read_header
from server.gguf.weights import stored_weights
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
PACKED_ZEROS = (".qzeros", ".weight_zero_point")  # of quantized checkpoints: minimums of float32 are made of them
PACKED_SCALES = (".scales", ".weight_scale")  # kept as float32
PLACES = (".g_idx", ".weight_g_idx", ".weight_shape")  # read once
CODES = {block.name: block for block in TYPES.values() if block.code_bits}  # of GGUF files
PLAIN_BITS = 16  # of a projection that is not quantized
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header."""

    name: str
    dtype: str  # as the format spells it: BF16, F32, I8, …, or Q4_K for codes that are kept
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def read_headers(folder: Path, merged: Collection[PartName] = ()) -> tuple[Tensor, ...]:
    """Every tensor of the folder's safetensors files, or of a GGUF file: as F32 unless a CPU keeps its codes.

    `merged`: the layers that an adapter is merged into. Raises CannotStart if there is none or one is broken.
    """
    if folder.is_file():
        stored = stored_weights(read_header(folder))
        types = {
            name: block.name for name, block in kept_codes(stored, lambda name: weight_part(name) in merged).items()
        }
        return tuple(Tensor(weight.name, types.get(weight.name, "F32"), weight.shape) for weight in stored)
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CannotStart(f"{folder} has no *.safetensors file; other weight formats are not read")
    return tuple(tensor for path in paths for tensor in _read_header(path))


def weight_bytes(
    tensors: Iterable[Tensor],
    *,
    dtype: str,
    quantize: str,
    tied: bool,
    keeps_float8: bool = True,
    on_host: bool = True,
) -> int:
    """Bytes of the weights after loading as `dtype` ("float32", "bfloat16", "float16").

    With `quantize` the matrices inside the layers take that many bits and their scales, those of experts only
    `on_host`; the output matrix takes eight. A tied one is counted once, also where the file holds it twice. Unless
    `keeps_float8`, float8 weights are multiplied out to `dtype` and their scales go; so are codes of a GGUF file unless
    `on_host`.
    """
    head = EMBEDDING if tied else HEAD
    if not keeps_float8:
        tensors = _multiplied_out(tensors)
    if not on_host:
        tensors = (replace(tensor, dtype="F32") if tensor.dtype in CODES else tensor for tensor in tensors)
    return sum(
        _loaded_bytes(tensor, dtype, _width(tensor, quantize, head, on_host))
        for tensor in tensors
        if not tensor.name.startswith(UNUSED) and not (tied and tensor.name.endswith(HEAD))
    )


def _multiplied_out(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        if not tensor.name.endswith(SCALE_SUFFIX):
            yield replace(tensor, dtype="BF16") if tensor.dtype in FLOAT8 else tensor


def quantizable_bits(tensors: Iterable[Tensor], *, on_host: bool) -> int:
    """The most bits of a projection that `--quantize` can narrow; 0 for checkpoints of few bits, which it refuses."""
    own = list(tensors)
    if any(tensor.name.endswith((".qweight", ".weight_packed")) or tensor.dtype == "I8" for tensor in own):
        return 0
    kept = {tensor: CODES[tensor.dtype].code_bits for tensor in own if tensor.dtype in CODES and on_host}
    return max((kept.get(one, PLAIN_BITS) for one in own if is_quantizable(one.name, one.shape)), default=PLAIN_BITS)


def _width(tensor: Tensor, quantize: str, head: str, on_host: bool) -> int:
    """Bits of a weight that is quantized while it is loaded, or 0."""
    if tensor.dtype in CODES:
        width = QUANTIZED_WIDTHS.get(quantize, 0)
        return width if is_requantized(tensor.name, tensor.shape, CODES[tensor.dtype].code_bits, width) else 0
    if quantize == "none" or tensor.dtype not in CAST:
        return 0
    if tensor.name.endswith(head) and can_be_packed(tensor.shape):
        return head_width(QUANTIZED_WIDTHS[quantize], on_host)
    is_expert = on_host and is_quantizable_expert(tensor.name, tensor.shape)
    return QUANTIZED_WIDTHS[quantize] if is_expert or is_quantizable(tensor.name, tensor.shape) else 0


def _loaded_bytes(tensor: Tensor, dtype: str, width: int) -> int:
    if width:
        return quantized_bytes(width, tensor.shape)
    if tensor.dtype in CODES:
        return kept_bytes(CODES[tensor.dtype], tensor.shape)
    if tensor.name.endswith(PLACES):
        return 0
    if tensor.name.endswith(PACKED_SCALES):
        return tensor.count * 4
    if tensor.name.endswith(PACKED_ZEROS) and tensor.dtype == "I32":
        return tensor.count * 32  # eight in one
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
