"""Sizes of adapters, from the headers of their files; their weights are not read."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from server.adapter_folder import WEIGHTS, PartName, parse_adapters, read_adapter_config, tensor_part
from server.errors import CannotStart

LOW_RANK_BYTES = 4 * 4  # of a token and a number of the rank: four layers of one input at once, in float32


@dataclass(frozen=True, slots=True)
class AdapterSizes:
    """Numbers in the factors of adapters, and the sum of the greatest rank of each."""

    numbers: int = 0
    ranks: int = 0

    def scratch_bytes(self, max_batch_tokens: int) -> int:
        """Bytes of intermediate results while a step of that number of tokens is computed."""
        return LOW_RANK_BYTES * max_batch_tokens * self.ranks


NO_ADAPTERS = AdapterSizes()


def sizes_of(options: Iterable[str]) -> AdapterSizes:
    """The sizes of all adapters of `--adapter NAME=FOLDER` options together. Raises CannotStart."""
    found = [adapter_sizes(source.folder) for source in parse_adapters(tuple(options), ())]
    return AdapterSizes(sum(one.numbers for one in found), sum(one.ranks for one in found))


def adapter_sizes(folder: Path) -> AdapterSizes:
    """The size of one adapter. Raises CannotStart."""
    shapes = _shapes(folder)
    ranks = (shape[0] for name, shape in shapes.items() if (own := tensor_part(name)) and own[1] == "A" and shape)
    return AdapterSizes(sum(map(math.prod, shapes.values())), max(ranks, default=0))


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
