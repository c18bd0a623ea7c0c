"""Sizes of adapters, from the headers of their files; their weights are not read."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from server.adapter_folder import WEIGHTS, PartName, parse_adapters, read_adapter_config, tensor_part
from server.errors import CannotStart

LOW_RANK_BYTES = 4 * 4  # of a token and a number of the rank: four layers of one input at once, in float32


def count_numbers(options: Iterable[str]) -> int:
    """Numbers in all adapters of `--adapter NAME=FOLDER` options. Raises CannotStart."""
    return sum(adapter_numbers(source.folder) for source in parse_adapters(tuple(options), ()))


def adapter_numbers(folder: Path) -> int:
    """Numbers in an adapter's factors. Raises CannotStart."""
    return sum(math.prod(shape) for shape in _shapes(folder).values())


def merged_parts(folder: str) -> frozenset[PartName]:
    """The layers that the adapter of `--merge-adapter` changes; none for an empty path. Raises CannotStart."""
    found = map(tensor_part, _shapes(Path(folder).expanduser()) if folder else ())
    return frozenset(own[0] for own in found if own is not None)


def _shapes(folder: Path) -> dict[str, Sequence[int]]:
    """The tensors of an adapter's file by name."""
    read_adapter_config(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            names = list(file.keys())
            return {name: file.get_slice(name).get_shape() for name in names}
    except (OSError, SafetensorError) as error:
        raise CannotStart(f"cannot read {folder / WEIGHTS}: {error}") from error
