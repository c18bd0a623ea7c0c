"""`toolwire plan MODEL`: memory use by purpose, from configuration and headers. Loads no weights.

Exit code 0 if the model fits, 2 if it does not or cannot be read.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from huggingface_hub import get_safetensors_metadata, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, NotASafetensorsRepoError
from rich.console import Console
from rich.table import Table

from server.adapter_folder import PartName
from server.checkpoint.folder import check_files
from server.checkpoint.locate import locate, locate_cached_gguf
from server.checkpoint.shipped import choose_model, is_shipped
from server.config_json import read_config
from server.errors import CannotStart
from server.memory.adapters import merged_parts, sizes_of
from server.memory.budget import GIB, MIB, DeviceMemory, Plan, demand_of, device_memory_of, plan
from server.memory.headers import Tensor, read_headers
from server.memory.probe import DeviceSelector
from server.memory.report import remedies, rows, size
from server.memory.shape import Shape, read_shape
from server.memory.start import open_probe
from server.settings import (
    EngineSettings,
    Settings,
    config_path_from_environment,
    read_environment,
    read_file,
    resolve,
)

CUDA_RUNTIME_BYTES = 512 * MIB  # a CUDA context and torch's kernels; measured at start where there is a GPU
UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": MIB, "GIB": GIB, "TIB": 1 << 40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
EXIT_DOES_NOT_FIT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.ERROR)
    console = Console(highlight=False)
    try:
        settings = choose_model(_settings(options))
        model, engine = settings.model.model, settings.engine
        folder = str(locate(model)) if is_shipped(model) else model
        shape, tensors = _read_model(folder, merged_parts(engine.merge_adapter))
        device, overhead = _device_memory(engine, options.gpu_memory)
        demand = demand_of(engine, settings.model.max_model_len, shape, sizes_of(engine.adapter))
        found = plan(shape, tensors, demand, device, overhead)
    except CannotStart as error:
        Console(stderr=True, highlight=False).print(str(error), markup=False, soft_wrap=True)
        return EXIT_DOES_NOT_FIT
    _show(console, model, found, () if found.fits else remedies(shape, tensors, found))
    return 0 if found.fits else EXIT_DOES_NOT_FIT


def read_size(text: str) -> int:
    """Bytes of "24GiB", "24 GB" or "25769803776"; raises CannotStart if it is no size."""
    digits = text.strip().rstrip("BbIiKkMmGgTt ")
    unit = text.strip()[len(digits) :].strip().upper()
    try:
        return int(float(digits) * UNITS[unit])
    except (ValueError, KeyError) as error:
        raise CannotStart(f"--gpu-memory cannot be {text!r}; write it as 24GiB") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="toolwire plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", metavar="MODEL", help="Folder, GGUF file or hub id of the checkpoint; a hub id is not downloaded."
    )
    parser.add_argument(
        "--gpu-memory", metavar="SIZE", help="Plan for a GPU of this size (24GiB) instead of this machine."
    )
    parser.add_argument("--config", metavar="FILE", default="", help="TOML file with settings.")
    parser.add_argument("--max-model-len", metavar="N", help="Context length in tokens; 0 takes what fits.")
    for field in dataclasses.fields(EngineSettings):
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=_help_of(field))
        elif isinstance(field.default, tuple):
            parser.add_argument(flag, metavar="X", action="append", help=_help_of(field))
        else:
            parser.add_argument(flag, metavar="X", help=_help_of(field))
    return parser


def _help_of(field: "dataclasses.Field[object]") -> str:
    return f"{field.metadata['help']} [default: {field.default}]".replace("%", "%%")


def _settings(options: argparse.Namespace) -> Settings:
    given = vars(options).copy()
    for name in ("gpu_memory", "config"):
        del given[name]
    file = read_file(options.config or config_path_from_environment())
    return resolve(given, read_environment(), file).settings


def _device_memory(engine: EngineSettings, gpu_memory: str | None) -> tuple[DeviceMemory, int]:
    """The memory to plan for, and the bytes that the runtime takes of it before the weights."""
    if gpu_memory is not None:
        total = read_size(gpu_memory)
        return DeviceMemory(total, total), CUDA_RUNTIME_BYTES
    selector = DeviceSelector(visible=read_environment().get("CUDA_VISIBLE_DEVICES"))
    if engine.device != "cpu" and engine.memory_probe != "host":
        try:
            reading = open_probe("cuda", "nvml", selector).read()[0]
            return device_memory_of(reading), CUDA_RUNTIME_BYTES
        except CannotStart as error:
            if engine.device == "cuda" or engine.memory_probe == "nvml":
                raise CannotStart("no GPU can be read here; give its size with --gpu-memory 24GiB") from error
    return device_memory_of(open_probe("cpu", "auto", selector).read()[0]), 0


def _read_model(model: str, merged: Collection[PartName]) -> tuple[Shape, tuple[Tensor, ...]]:
    """Shape and tensors from a folder or file, the hub's local cache, or the headers of the files on the hub.

    `merged`: as in `read_headers`.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        check_files(path)
    if path.exists():
        return read_shape(read_config(path)), read_headers(path, merged)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CannotStart(f"{model} does not exist; give a folder, a GGUF file, or a hub id such as Qwen/Qwen3-0.6B")
    if ":" in model:
        path = locate_cached_gguf(model)
        return read_shape(read_config(path)), read_headers(path, merged)
    try:
        cached = try_to_load_from_cache(model, "config.json")
        if isinstance(cached, str) and any(Path(cached).parent.glob("*.safetensors")):
            return read_shape(read_config(Path(cached).parent)), read_headers(Path(cached).parent)
        config = read_config(Path(hf_hub_download(model, "config.json")).parent)
        files = get_safetensors_metadata(model).files_metadata.values()
    except (HFValidationError, HfHubHTTPError, NotASafetensorsRepoError, OSError) as error:
        raise CannotStart(f"{model} cannot be read from the hub: {error}") from error
    tensors = (Tensor(name, info.dtype, tuple(info.shape)) for file in files for name, info in file.tensors.items())
    return read_shape(config), tuple(tensors)


def _show(console: Console, model: str, found: Plan, offers: tuple[str, ...]) -> None:
    console.print(f"{model}: {'fits' if found.fits else 'does not fit'}", markup=False, soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for row in rows(found):
        table.add_row(row.label, row.amount, row.note)
    console.print(table)
    if found.fits:
        return
    console.print(f"{size(found.missing)} are missing." + (" What would make it fit:" if offers else ""), markup=False)
    for offer in offers:
        console.print(f"  {offer}", markup=False, soft_wrap=True)
    if not offers:
        console.print("No option makes it fit; take a larger device.", markup=False)


if __name__ == "__main__":
    sys.exit(main())
