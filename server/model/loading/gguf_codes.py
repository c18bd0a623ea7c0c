"""Codes of a GGUF file that stay as they are stored, and what becomes of every type, said at start."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from ctypes import CDLL
from pathlib import Path

import torch
from torch import Tensor

from server.config_json import (
    QUANTIZED_WIDTHS,
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
from server.model.adapters.merging import MergedAdapter
from server.model.loading.gguf_weights import GgufWeights
from server.model.loading.plain import EMBEDDING, HEAD
from server.model.quantization.packed_weight import PackedWeight
from server.settings import EngineSettings

log = logging.getLogger(__name__)

MIB = 1 << 20


class StoredCodes(Mapping[str, Tensor | PackedWeight]):
    """Weights of a file: the codes of those that are kept, the numbers of all others."""

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype,
        settings: EngineSettings,
        kernels: CDLL | None,
        *,
        on_host: bool = True,
        merge: MergedAdapter | None = None,
    ) -> None:
        """`kernels` lay codes out; without them torch does. Kept `on_host` is what neither `--quantize`
        narrows nor an adapter changes that is merged.

        Logs the forms of all weights. Raises CannotStart for a damaged file, and if `--quantize` narrows nothing.
        """
        self.numbers = GgufWeights(path, dtype)
        self._kernels = kernels
        self._on_host = on_host
        width = QUANTIZED_WIDTHS.get(settings.quantize, 0)
        stored = self.numbers.stored
        self.kept = {
            name: block
            for name, block in kept_codes(stored.values(), merge.changes if merge else None).items()
            if on_host and not is_requantized(name, stored[name].shape, block.code_bits, width)
        }
        head = HEAD if HEAD in stored else EMBEDDING
        widths = {name: self._width(name, width, head) for name in stored}
        if width and not any(widths.values()):
            raise CannotStart(
                f"--quantize {settings.quantize}: no matrix of {path} takes more bits already; leave the option out"
            )
        self._log_forms(widths)

    def __getitem__(self, name: str) -> Tensor | PackedWeight:
        return self.packed(name) if name in self.kept else self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def packed(self, name: str) -> PackedWeight:
        """The codes of a weight that is kept. Raises CannotStart for scales that are not finite."""
        return self.numbers.packed(name, self._kernels)

    def _width(self, name: str, width: int, head: str) -> int:
        """Bits to which `--quantize` of this width takes a weight, or 0."""
        shape = self.numbers.stored[name].shape
        if not width or name in self.kept:
            return 0
        if name == head and can_be_packed(shape):
            return head_width(width, self._on_host)
        is_expert = self._on_host and is_quantizable_expert(name, shape)
        return width if is_expert or is_quantizable(name, shape) else 0

    def _log_forms(self, widths: Mapping[str, int]) -> None:
        """What becomes of each type of the file, and the memory that it takes; the largest first."""
        counts, sizes = Counter[str](), Counter[str]()
        for name, weight in self.numbers.stored.items():
            if name in self.kept:
                form, num_bytes = "codes as stored", kept_bytes(self.kept[name], weight.shape)
            elif widths[name]:
                form, num_bytes = f"quantized to {widths[name]} bits", quantized_bytes(widths[name], weight.shape)
            else:
                form = f"numbers of {str(self.numbers.dtype).removeprefix('torch.')}"
                num_bytes = math.prod(weight.shape) * self.numbers.dtype.itemsize
            line = f"{weight.type_name}: {form}"
            counts[line] += 1
            sizes[line] += num_bytes
        for line, num_bytes in sizes.most_common():
            log.info("%s, %d weights, %.1f MiB", line, counts[line], num_bytes / MIB)
