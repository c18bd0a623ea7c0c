"""Header of a GGUF file: its metadata and its table of tensors, without the tensors' data.

    "GGUF", version, number of tensors, number of entries      all numbers are little-endian
    entries: key, type, value                                  a string is its length and its bytes, an array its type,
    tensors: name, shape, type, offset                         its length and its elements
    data, from the next multiple of the alignment on           (docs/gguf.md of the ggml repository)

Every length and count is compared with what is left of the file before it is believed, and a header has a greatest
size, so that no file costs more memory than a few times its header. Every fault is a CannotStart of one line.
"""

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from server.errors import CannotStart

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LARGEST_HEADER = 64 << 20  # bytes; a vocabulary of 250,000 tokens with its merges takes 12 MB
LONG_ARRAY = 1024  # elements; longer ones are a vocabulary, which is read where it is asked for
MOST_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
ALIGNMENTS = tuple(1 << power for power in range(3, 21))  # numbers are read where they lie
SCALARS = {code: struct.Struct(f"<{letter}") for code, letter in enumerate("BbHhIif?")} | {
    code: struct.Struct(f"<{letter}") for code, letter in ((10, "Q"), (11, "q"), (12, "d"))
}
STRING, ARRAY = 8, 9
COUNT, KIND = struct.Struct("<Q"), struct.Struct("<I")
SMALLEST_ENTRY = 13  # bytes: an empty key, the type, a value of one byte
SMALLEST_TENSOR = 32  # bytes: an empty name, one dimension, type and offset
PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BlockType:
    """How numbers are stored: `elements` of one row together in `num_bytes`.

    Codes take `packed_bytes` in the kernels' layout (`model/quantization/packed_weight.py`): scales of four to eight
    bits are bytes there, and the numbers that multiply those of a block float32.
    """

    name: str
    elements: int
    num_bytes: int
    code_bits: int = 0  # 0: plain numbers
    packed_bytes: int = 0


# By the numbers of ggml's `enum ggml_type`. Those without a size here are not served.
TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    30: BlockType("BF16", 1, 2),
    2: BlockType("Q4_0", 32, 18, 4, 18),
    3: BlockType("Q4_1", 32, 20, 4, 20),
    6: BlockType("Q5_0", 32, 22, 5, 22),
    7: BlockType("Q5_1", 32, 24, 5, 24),
    8: BlockType("Q8_0", 32, 34, 8, 34),
    12: BlockType("Q4_K", 256, 144, 4, 152),
    13: BlockType("Q5_K", 256, 176, 5, 184),
    14: BlockType("Q6_K", 256, 210, 6, 212),
}
OTHER_TYPES: Mapping[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its rows lie one after the other in `num_bytes` from byte `offset` of the file `path` on."""

    name: str
    type: BlockType
    shape: tuple[int, ...]  # as in torch: the last side is the one whose elements are stored together
    path: Path
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata by key, and the tensors of the file and of the parts that belong to it.

    Long arrays are left out of the metadata unless the vocabulary was asked for.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """The name that prefixes the keys of the model's sizes; raises CannotStart if there is none."""
        return str(self.value("general.architecture", str))

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        """The entry, or the default where there is none; raises CannotStart if it is absent or of another type."""
        found = self.metadata.get(key, default)
        if found is None:
            raise CannotStart(f"{self.path} has no {key}, which a model needs")
        if type(found) is not kind and not (kind is float and type(found) is int):
            raise CannotStart(f"{self.path}: {key} must be of type {kind.__name__}, and is {str(found)[:40]!a}")
        return found


def read_header(path: Path, *, vocabulary: bool = False) -> GgufHeader:
    """The header of a GGUF file, with those of the other parts where it is the first part of several.

    `vocabulary`: read the long arrays too. Raises CannotStart.
    """
    first = _read_part(path, vocabulary)
    tensors = [tensor for part in (first, *_other_parts(first)) for tensor in part.tensors]
    names = {tensor.name for tensor in tensors}
    expected = first.value("split.tensors.count", int, len(tensors))
    if len(names) < len(tensors) or expected != len(tensors):
        raise CannotStart(f"{path} names {expected} tensors, and {len(names)} different ones are there")
    return GgufHeader(path, first.metadata, tuple(tensors))


def _other_parts(first: GgufHeader) -> Iterator[GgufHeader]:
    """The headers of the parts after the first; their names differ in the number alone."""
    count = first.value("split.count", int, 1)
    if count <= 1:
        return
    match = PART.fullmatch(first.path.name)
    if match is None or int(match["count"]) != count:
        raise CannotStart(f"{first.path} is one of {count} parts; name them NAME-00001-of-{count:05}.gguf and so on")
    if first.value("split.no", int, 0) != 0:
        raise CannotStart(f"{first.path} is not the first part; give {match['name']}-00001-of-{count:05}.gguf")
    for number in range(2, count + 1):
        yield _read_part(first.path.with_name(f"{match['name']}-{number:05}-of-{count:05}.gguf"), vocabulary=False)


def _read_part(path: Path, vocabulary: bool) -> GgufHeader:
    try:
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
            if begin != MAGIC:
                hint = "; a git-lfs pointer is fetched with `git lfs pull`" if begin == b"vers" else ""
                raise CannotStart(f"{path} is no GGUF file: it does not begin with the letters GGUF{hint}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _HeaderParser(path, content).parse(vocabulary)
    except OSError as error:
        raise CannotStart(f"cannot read {path}: {error}") from error


class _HeaderParser:
    """Position in the header of one file. Reads nothing beyond its end."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._end = min(len(content), LARGEST_HEADER)
        self._at = len(MAGIC)

    def parse(self, vocabulary: bool) -> GgufHeader:
        """Everything from the version to the table of tensors."""
        version = self._number(KIND)
        if version not in VERSIONS:
            self._refuse(f"is GGUF of version {version}; versions {' and '.join(map(str, VERSIONS))} are read")
        num_tensors, num_entries = self._number(COUNT), self._number(COUNT)
        self._check_count(num_entries, SMALLEST_ENTRY, "entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._string()
            if key in metadata:
                self._refuse(f"has two entries of the name {key[:60]!a}")
            metadata[key] = self._value(self._number(KIND), vocabulary)
        self._check_count(num_tensors, SMALLEST_TENSOR, "tensors")
        entries = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if alignment not in ALIGNMENTS:
            self._refuse(f"has an alignment of {str(alignment)[:40]!a} bytes, which is no power of two from 8 on")
        data = math.ceil(self._at / alignment) * alignment
        found = {key: value for key, value in metadata.items() if value is not None}
        return GgufHeader(self._path, found, tuple(self._placed(tensor, data, alignment) for tensor in entries))

    def _tensor(self) -> GgufTensor:
        name = self._string()
        num_dimensions = self._number(KIND)
        if not 1 <= num_dimensions <= MOST_DIMENSIONS:
            self._refuse(f"gives the tensor {name[:60]!a} {num_dimensions} dimensions")
        shape = tuple(self._number(COUNT) for _ in range(num_dimensions))[::-1]
        code, offset = self._number(KIND), self._number(COUNT)
        if code not in TYPES:
            served = ", ".join(block.name for block in TYPES.values())
            found = OTHER_TYPES.get(code, f"number {code}")
            self._refuse(f"stores {name[:60]!a} as {found}, a type that is not served; those served are {served}")
        block = TYPES[code]
        if shape[-1] % block.elements or not all(shape):
            self._refuse(f"gives {name[:60]!a} the shape {list(shape)}, which blocks of {block.elements} do not fill")
        return GgufTensor(name, block, shape, self._path, offset, math.prod(shape) // block.elements * block.num_bytes)

    def _placed(self, tensor: GgufTensor, data: int, alignment: int) -> GgufTensor:
        """The tensor with its offset counted from the start of the file, which must hold all of it."""
        begin, end = data + tensor.offset, data + tensor.offset + tensor.num_bytes
        if end > len(self._content):
            size = len(self._content)
            self._refuse(f"is truncated: {tensor.name[:60]!a} ends at byte {end}, the file at byte {size}")
        if tensor.offset % alignment:
            self._refuse(f"stores {tensor.name[:60]!a} at byte {begin}, which is not aligned to {alignment}")
        return GgufTensor(tensor.name, tensor.type, tensor.shape, tensor.path, begin, tensor.num_bytes)

    def _value(self, kind: int, vocabulary: bool) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(self._scalar(kind))
        kind, count = self._number(KIND), self._number(COUNT)
        keep = vocabulary or count <= LONG_ARRAY
        return self._strings(count, keep) if kind == STRING else self._numbers(self._scalar(kind), count, keep)

    def _strings(self, count: int, keep: bool) -> list[str] | None:
        self._check_count(count, COUNT.size, "strings in an array")
        content, unpack, at, end = self._content, COUNT.unpack_from, self._at, self._end
        found: list[str] | None = [] if keep else None
        for _ in range(count):  # 300,000 times at each start: without a call for each
            begin = at + COUNT.size
            at = begin + unpack(content, at)[0] if begin <= end else begin
            if at > end:
                self._at = min(begin, end)
                self._take(at - self._at)  # refuses
            if found is not None:
                found.append(content[begin:at].decode("utf-8", "replace"))
        self._at = at
        return found

    def _numbers(self, layout: struct.Struct, count: int, keep: bool) -> list[Any] | None:
        self._check_count(count, layout.size, "numbers in an array")
        begin = self._take(count * layout.size)
        end = self._at
        return [value for (value,) in layout.iter_unpack(self._content[begin:end])] if keep else None

    def _scalar(self, kind: int) -> struct.Struct:
        if kind not in SCALARS:
            self._refuse(f"has a value of type {kind} in its metadata, which is not defined")
        return SCALARS[kind]

    def _string(self) -> str:
        length = self._number(COUNT)
        begin = self._take(length)
        return self._content[begin : begin + length].decode("utf-8", "replace")

    def _number(self, layout: struct.Struct) -> Any:
        return layout.unpack_from(self._content, self._take(layout.size))[0]

    def _take(self, num_bytes: int) -> int:
        """Where the next bytes begin; moves behind them."""
        begin = self._at
        if num_bytes > self._end - begin:
            where = "the end of the file" if self._end == len(self._content) else "the longest header that is read"
            self._refuse(f"is damaged: its header has {num_bytes} bytes at byte {begin}, beyond {where}")
        self._at = begin + num_bytes
        return begin

    def _check_count(self, count: int, smallest: int, what: str) -> None:
        if count * smallest > self._end - self._at:
            self._refuse(f"is damaged: its header announces {count} {what}, more than the file can hold")

    def _refuse(self, reason: str) -> NoReturn:
        raise CannotStart(f"{self._path} {reason}")
