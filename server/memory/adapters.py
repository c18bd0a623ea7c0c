"""Sizes of adapters, from the headers of their files; their weights are not read."""

import math
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from server.adapter_folder import WEIGHTS, parse_adapters, read_adapter_config
from server.errors import CannotStart

SQUEEZED_BYTES = 4 * 4  # of a token and a number of the rank: four layers of one input at once, in float32


def count_numbers(options: Iterable[str]) -> int:
    """Numbers in all adapters of `--adapter NAME=FOLDER` options. Raises CannotStart."""
    return sum(adapter_numbers(source.folder) for source in parse_adapters(tuple(options), ()))


def adapter_numbers(folder: Path) -> int:
    """Numbers in an adapter's factors. Raises CannotStart."""
    read_adapter_config(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            names = list(file.keys())
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except (OSError, SafetensorError) as error:
        raise CannotStart(f"cannot read {folder / WEIGHTS}: {error}") from error
