"""Loads dense decoders from a GGUF file, without transformers: their codes as they are stored."""

import logging
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from ctypes import CDLL
from pathlib import Path

import torch
from torch import Tensor

from server.config_json import QUANTIZED_WIDTHS, is_requantized, kept_codes, read_config
from server.errors import CannotStart
from server.model.loading.gguf_weights import GgufWeights
from server.model.loading.loaded_model import LoadedModel, OnProgress
from server.model.loading.plain import convert, expected_shapes, open_plain, read_plain_config
from server.model.quantization.packed_weight import PackedWeight
from server.settings import EngineSettings

log = logging.getLogger(__name__)

MIB = 1 << 20


def load_gguf(
    checkpoint: Path, settings: EngineSettings, kernels: CDLL | None, on_progress: OnProgress, began_s: float
) -> LoadedModel | None:
    """Load the file on the CPU; None if transformers must load it. `kernels`: those of the CPU, or torch's.

    Raises CannotStart for weights that do not fit the file's configuration, and for a width of `--quantize` that
    nothing in the file exceeds.
    """
    fields = read_config(checkpoint)
    config = read_plain_config(fields)
    if config is None:
        return None
    dtype: torch.dtype = getattr(torch, config.dtype if settings.dtype == "auto" else settings.dtype)
    stored = GgufWeights(checkpoint, dtype)
    stored.check(expected_shapes(config))
    width = QUANTIZED_WIDTHS.get(settings.quantize, 0)
    kept = {
        name: block.name
        for name, block in kept_codes(fields, stored.stored.values()).items()
        if not is_requantized(name, stored.stored[name].shape, block.code_bits, width)
    }
    weights: dict[str, Tensor | PackedWeight] = {}
    own = StoredCodes(stored, kept, kernels)
    for number, (name, weight) in enumerate(convert(own, config, width, dtype, kernels, lambda fraction: None), 1):
        weights[name] = weight
        on_progress(0.9 * number / len(stored))
    if width and all(name in kept for name, weight in weights.items() if isinstance(weight, PackedWeight)):
        raise CannotStart(
            f"--quantize {settings.quantize}: no matrix of {checkpoint} takes more bits already; leave the option out"
        )
    _log_forms(stored, kept, weights)
    return open_plain(config, weights, kernels, on_progress, began_s)


class StoredCodes(Mapping[str, Tensor | PackedWeight]):
    """Weights of a file: the codes of those that are `kept`, the numbers of all others."""

    def __init__(self, stored: GgufWeights, kept: Container[str], kernels: CDLL | None) -> None:
        self._stored = stored
        self._kept = kept
        self._kernels = kernels

    def __getitem__(self, name: str) -> Tensor | PackedWeight:
        return self._stored.packed(name, self._kernels) if name in self._kept else self._stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _log_forms(stored: GgufWeights, kept: Mapping[str, str], weights: Mapping[str, Tensor | PackedWeight]) -> None:
    """Log what became of each type of the file, and the memory that it takes; the largest first."""
    counts, sizes = Counter[str](), Counter[str]()
    for name, weight in weights.items():
        if name in kept:
            form = "codes as stored"
        elif isinstance(weight, PackedWeight):
            form = f"quantized to {weight.width} bits"
        else:
            form = f"numbers of {str(weight.dtype).removeprefix('torch.')}"
        line = f"{stored.stored[name].type_name}: {form}"
        counts[line] += 1
        sizes[line] += weight.num_bytes if isinstance(weight, PackedWeight) else weight.nbytes
    for line, num_bytes in sizes.most_common():
        log.info("%s, %d weights, %.1f MiB", line, counts[line], num_bytes / MIB)
