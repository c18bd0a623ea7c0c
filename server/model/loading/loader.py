"""A checkpoint folder becomes a model: read by us where its form is a plain one, by transformers everywhere else."""

import time
from pathlib import Path

import torch

from server.errors import CannotStart
from server.model.cpu.native import NativeHead
from server.model.loading.loaded_model import LoadedModel, OnProgress
from server.model.loading.plain import load_plain
from server.settings import EngineSettings

SMALL_MODEL_BYTES = 64 << 20


def load(checkpoint: Path, settings: EngineSettings, on_progress: OnProgress) -> LoadedModel:
    """Load `checkpoint` as the settings say; `on_progress` is told the fraction of the bytes that are in.

    Raises CannotStart in one line where the folder, the architecture, a package or the device does not do.
    """
    began_s = time.monotonic()
    device = choose_device(settings.device)
    if not (checkpoint / "config.json").is_file():
        raise CannotStart(f"{checkpoint} is no checkpoint: it has no config.json")
    if not any(checkpoint.glob("*.safetensors")):
        raise CannotStart(f"{checkpoint} has no *.safetensors file with weights")
    loaded = None
    if device.type == "cpu" and settings.quantize == "none":
        loaded = load_plain(checkpoint, settings, on_progress, began_s)
    if loaded is None:
        # Here and not above: importing transformers takes two seconds, which the plain form does without.
        from server.model.loading.pretrained import load_pretrained

        loaded = load_pretrained(checkpoint, settings, device, on_progress, began_s)
    _choose_threads(settings.threads, loaded)
    on_progress(1.0)
    return loaded


def choose_device(wanted: str) -> torch.device:
    """The device to run on: `auto` takes the first CUDA device if there is one. Raises CannotStart without it."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise CannotStart("--device cuda: torch sees no CUDA device here; install a CUDA build or use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _choose_threads(wanted: int, loaded: LoadedModel) -> None:
    """A step of a small model is over before a second thread is awake, and on a busy machine it waits for that one.

    Where the compiled kernels compute all of it they see to this themselves, step by step: a long prompt is worth all
    threads.
    """
    is_small = loaded.weight_bytes < SMALL_MODEL_BYTES and not isinstance(loaded.head, NativeHead)
    if loaded.device.type == "cpu" and (wanted or is_small):
        torch.set_num_threads(wanted or 1)
