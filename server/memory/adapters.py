"""Sizes of adapters, from the headers of their files; their weights are not read."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from server.adapter_folder import WEIGHTS, parse_adapters, read_adapter_config, tensor_part, weight_part
from server.errors import CannotStart
from server.memory.headers import CODES, Tensor

SQUEEZED_BYTES = 4 * 4  # of a token and a number of the rank: four layers of one input at once, in float32


def count_numbers(options: Iterable[str]) -> int:
    """Numbers in all adapters of `--adapter NAME=FOLDER` options. Raises CannotStart."""
    return sum(adapter_numbers(source.folder) for source in parse_adapters(tuple(options), ()))


def with_merged(tensors: Iterable[Tensor], merge_adapter: str) -> tuple[Tensor, ...]:
    """The tensors of a checkpoint as `--merge-adapter` leaves them: codes that it changes are multiplied out.

    Raises CannotStart.
    """
    if not merge_adapter:
        return tuple(tensors)
    parts = {tensor_part(name) for name in _shapes(Path(merge_adapter).expanduser())}
    changed = {found[0] for found in parts if found is not None}
    return tuple(
        replace(tensor, dtype="F32") if tensor.dtype in CODES and weight_part(tensor.name) in changed else tensor
        for tensor in tensors
    )


def adapter_numbers(folder: Path) -> int:
    """Numbers in an adapter's factors. Raises CannotStart."""
    return sum(map(math.prod, _shapes(folder).values()))


def _shapes(folder: Path) -> dict[str, list[int]]:
    read_adapter_config(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise CannotStart(f"cannot read {folder / WEIGHTS}: {error}") from error
