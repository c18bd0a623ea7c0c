"""Loads dense decoders from a GGUF file, without transformers."""

from ctypes import CDLL
from pathlib import Path

import torch
from torch import Tensor

from server.config_json import QUANTIZED_WIDTHS, read_config
from server.model.adapters.merging import open_merged_adapter
from server.model.loading.gguf_codes import StoredCodes
from server.model.loading.loaded_model import LoadedModel, OnProgress
from server.model.loading.plain import convert, expected_shapes, open_plain, read_plain_config
from server.model.quantization.packed_weight import PackedWeight
from server.settings import EngineSettings


def load_gguf(
    checkpoint: Path, settings: EngineSettings, kernels: CDLL | None, on_progress: OnProgress, began_s: float
) -> LoadedModel | None:
    """Load the file on the CPU; None if transformers must load it. `kernels`: those of the CPU, or torch's.

    Raises CannotStart for weights that do not fit the file's configuration, and as `StoredCodes`.
    """
    config = read_plain_config(read_config(checkpoint))
    if config is None:
        return None
    dtype: torch.dtype = getattr(torch, config.dtype if settings.dtype == "auto" else settings.dtype)
    merge = open_merged_adapter(settings.merge_adapter)
    stored = StoredCodes(checkpoint, dtype, settings, kernels, merge=merge)
    stored.numbers.check(expected_shapes(config))
    width = QUANTIZED_WIDTHS.get(settings.quantize, 0)
    weights: dict[str, Tensor | PackedWeight] = {}
    converted = convert(stored, config, width, dtype, kernels, lambda fraction: None, merge)
    for number, (name, weight) in enumerate(converted, 1):
        weights[name] = weight
        on_progress(0.9 * number / len(stored))
    return open_plain(config, weights, settings, kernels, on_progress, began_s)
