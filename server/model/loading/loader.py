"""Loads a checkpoint folder or GGUF file: plain dense decoders directly, all others through transformers."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from server.config_json import read_config
from server.errors import CannotStart
from server.model.cpu.native import NativeHead
from server.model.cpu.selection import choose_library
from server.model.loading.gguf import load_gguf
from server.model.loading.loaded_model import LoadedModel, OnProgress
from server.model.loading.plain import load_plain
from server.settings import EngineSettings

SMALL_MODEL_BYTES = 64 << 20


def load(checkpoint: Path, settings: EngineSettings, on_progress: OnProgress) -> LoadedModel:
    """Load `checkpoint` according to the settings; `on_progress` gets the fraction of bytes loaded.

    Raises CannotStart, with a one-line text, if the folder, the architecture, a package or the device is unsuitable.
    """
    began_s = time.monotonic()
    device = choose_device(settings.device)
    if not checkpoint.is_file():
        _check_folder(checkpoint)
        _refuse_quantized_twice(checkpoint, settings)
    loaded = None
    kernels = choose_library(settings.cpu_isa) if device.type == "cpu" else None
    if settings.kv_dtype == "int8" and device.type == "cpu" and kernels is None:
        raise CannotStart("--kv-dtype int8 takes the compiled CPU kernels, and there are none; use --kv-dtype auto")
    if device.type == "cpu":
        load_dense = load_gguf if checkpoint.is_file() else load_plain
        loaded = load_dense(checkpoint, settings, kernels, on_progress, began_s)
    if loaded is None:
        # Imported here: transformers takes two seconds to import, and plain decoders do not need it.
        from server.model.loading.pretrained import load_pretrained

        loaded = load_pretrained(checkpoint, settings, device, kernels, on_progress, began_s)
    _choose_threads(settings.threads, loaded)
    on_progress(1.0)
    return replace(loaded, kv_in_bytes=settings.kv_dtype == "int8")


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise CannotStart(f"{folder} is no checkpoint: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise CannotStart(f"{folder} has no *.safetensors file with weights")


def choose_device(requested: str) -> torch.device:
    """The device to run on; `auto` is CUDA if available. Raises CannotStart for `cuda` without a CUDA device."""
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise CannotStart("--device cuda: torch sees no CUDA device here; install a CUDA build or use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _refuse_quantized_twice(checkpoint: Path, settings: EngineSettings) -> None:
    quantization = read_config(checkpoint).get("quantization_config") or {}
    method = quantization.get("quant_method")
    if settings.quantize != "none" and quantization and method != "fp8":  # which is multiplied out first
        raise CannotStart(
            f"--quantize {settings.quantize}: this checkpoint is quantized already, with {method}; leave the option out"
        )


def _choose_threads(requested: int, loaded: LoadedModel) -> None:
    """Set torch's number of threads; one for a small model, whose step ends before a second thread has woken up.

    The compiled kernels choose their number of threads themselves, step by step.
    """
    is_small = loaded.weight_bytes < SMALL_MODEL_BYTES and not isinstance(loaded.head, NativeHead)
    if loaded.device.type == "cpu" and (requested or is_small):
        torch.set_num_threads(requested or 1)
