"""Headers of GGUF files: what the package's reader finds, and a refusal of one line for whatever is damaged."""

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import CannotStart
from server.gguf.header import LARGEST_HEADER, TYPES, read_header
from tests.gguf.written import Type

MOST_MEMORY = 1 << 20


def write_small(path: Path, **options: Any) -> Path:
    """A file with one entry of each type and three tensors."""
    writer = gguf.GGUFWriter(path, "qwen3", **options)
    writer.add_uint8("a.uint8", 200)
    writer.add_int8("a.int8", -100)
    writer.add_uint16("a.uint16", 60_000)
    writer.add_int16("a.int16", -30_000)
    writer.add_uint32("a.uint32", 1 << 31)
    writer.add_int32("a.int32", -(1 << 31))
    writer.add_uint64("a.uint64", 1 << 63)
    writer.add_int64("a.int64", -(1 << 63))
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 1e300)
    writer.add_bool("a.bool", True)
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.strings", ["eins", "zwölf", ""])
    writer.add_tensor("first", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("second", np.zeros((3, 34), np.uint8), raw_dtype=Type.Q8_0)
    writer.add_tensor("third", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_the_packages_reader_finds_the_same(small: Path) -> None:
    """An offset that is counted from another place, or a shape the other way round, would load garbage."""
    header, reader = read_header(small), gguf.GGUFReader(small)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert dict(header.metadata) == theirs and header.architecture == "qwen3"
    assert [
        (tensor.name, tensor.type.name, tensor.offset, tensor.num_bytes, tensor.shape[::-1])
        for tensor in header.tensors
    ] == [
        (one.name, one.tensor_type.name, one.data_offset, one.n_bytes, tuple(one.shape.tolist()))
        for one in reader.tensors
    ]


def test_the_sizes_of_blocks_are_those_of_the_package() -> None:
    sizes = {code: (block.elements, block.num_bytes) for code, block in TYPES.items()}
    assert sizes == {code: gguf.GGML_QUANT_SIZES[Type(code)] for code in TYPES}
    assert {code: block.name for code, block in TYPES.items()} == {code: Type(code).name for code in TYPES}


def test_long_arrays_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    """The engine reads a header three times at its start, and has no use for 300,000 strings."""
    writer = gguf.GGUFWriter(tmp_path / "long.gguf", "qwen3")
    words = [f"word{number}" for number in range(2000)]
    writer.add_array("words", words)
    writer.add_array("scores", [float(number) for number in range(2000)])
    writer.add_string("last", "read")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert set(read_header(tmp_path / "long.gguf").metadata) == {"general.architecture", "last"}
    whole = read_header(tmp_path / "long.gguf", vocabulary=True).metadata
    assert whole["words"] == words and len(whole["scores"]) == 2000 and whole["last"] == "read"


def refusal(path: Path) -> str:
    """The line that refuses this file; reading it takes little memory, whatever it announces."""
    tracemalloc.start()
    try:
        with pytest.raises(CannotStart) as caught:
            read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_file_is_refused_wherever_it_ends(small: Path, tmp_path: Path) -> None:
    content, cut = small.read_bytes(), tmp_path / "cut.gguf"
    for length in range(0, len(content) - 32, 7):  # the last tensor is padded to 32 bytes
        cut.write_bytes(content[:length])
        assert "no GGUF" in refusal(cut) if length < 4 else refusal(cut)
    cut.write_bytes(content[:-40])
    assert "is truncated: 'third' ends at byte" in refusal(cut)


@pytest.mark.parametrize("value", [0xFFFFFFFFFFFFFFFF, 1 << 20])
def test_no_length_is_believed(small: Path, tmp_path: Path, value: int) -> None:
    """Every place of the header in turn says that very much follows: no memory is taken by its word."""
    content, hostile = small.read_bytes(), tmp_path / "hostile.gguf"
    tracemalloc.start()
    for at in range(4, 700, 4):
        hostile.write_bytes(content[:at] + struct.pack("<Q", value) + content[at + 8 :])
        try:
            read_header(hostile)
        except CannotStart as fault:
            assert "\n" not in str(fault)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_MEMORY


@given(st.binary(max_size=200))
def test_noise_behind_the_magic_is_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    path.write_bytes(b"GGUF" + noise)
    assert refusal(path)


def header_of(*, version: int = 3, tensors: int = 0, entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def tensor(name: bytes, code: int, *shape: int, offset: int = 0) -> bytes:
    sides = struct.pack(f"<{len(shape)}Q", *shape)
    return string(name) + struct.pack("<I", len(shape)) + sides + struct.pack("<IQ", code, offset) + bytes(64)


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("no GGUF file", b"<html>"),
        ("git lfs pull", b"version https://git-lfs.github.com/spec/v1\n"),
        ("version 1", header_of(version=1)),
        ("version 50331648", header_of(version=0x03000000)),
        ("announces 1099511627776 entries", header_of(entries=1 << 40)),
        ("announces 1099511627776 tensors", header_of(tensors=1 << 40)),
        ("type 77", header_of(entries=1, rest=string(b"key") + struct.pack("<I", 77) + bytes(16))),
        ("type 9", header_of(entries=1, rest=string(b"key") + struct.pack("<IIQ", 9, 9, 1) + bytes(16))),
        ("two entries", header_of(entries=2, rest=2 * (string(b"key") + struct.pack("<II", 4, 7)))),
        ("'x' as Q2_K, a type that is not served", header_of(tensors=1, rest=tensor(b"x", 10, 256))),
        ("number 99", header_of(tensors=1, rest=tensor(b"x", 99, 256))),
        ("blocks of 256", header_of(tensors=1, rest=tensor(b"x", 12, 64))),
        ("shape", header_of(tensors=1, rest=tensor(b"x", 0, 0, 4))),
        ("truncated", header_of(tensors=1, rest=tensor(b"x", 0, 1 << 60, 1 << 60))),
        ("not aligned", header_of(tensors=1, rest=tensor(b"x", 0, 1, offset=2))),
        (r"x\n\x1b", header_of(tensors=1, rest=tensor(b"x\n\x1b[31m", 10, 256))),
        ("2147483648 dimensions", header_of(tensors=1, rest=string(b"x") + struct.pack("<I", 1 << 31) + bytes(64))),
        (
            "alignment of '3' bytes",
            header_of(entries=1, rest=string(b"general.alignment") + struct.pack("<II", 4, 3)),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_fault_is_named(tmp_path: Path, reason: str, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert reason in refusal(path)


def test_a_header_has_a_greatest_size(tmp_path: Path) -> None:
    """A sparse file may announce a string as long as itself."""
    path = tmp_path / "large.gguf"
    path.write_bytes(header_of(entries=1, rest=struct.pack("<Q", 1 << 32)))
    with path.open("r+b") as file:
        file.truncate(1 << 33)
    assert "the longest header" in refusal(path)
    assert LARGEST_HEADER < 1 << 30


def test_a_split_file_is_read_with_its_parts(tmp_path: Path) -> None:
    write_small(tmp_path / "model.gguf", split_max_tensors=1)
    first = tmp_path / "model-00001-of-00003.gguf"
    header = read_header(first)
    assert [tensor.name for tensor in header.tensors] == ["first", "second", "third"]
    assert {tensor.path.name for tensor in header.tensors} == {f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)}
    assert "give model-00001-of-00003.gguf" in refusal(tmp_path / "model-00002-of-00003.gguf")
    other = first.rename(tmp_path / "renamed.gguf")
    assert "is one of 3 parts" in refusal(other)
    other.rename(first)
    (tmp_path / "model-00003-of-00003.gguf").unlink()
    with pytest.raises(CannotStart, match="model-00003-of-00003"):
        read_header(first)
