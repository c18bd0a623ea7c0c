"""Prebuilds Triton's C extension for machines without a C compiler: run `python -m` this module.

Triton compiles the extension that loads and launches kernels when the first kernel runs, which takes a C compiler. The
GPU image has none, so its build runs this module; without the extension no kernel and no CUDA graph would run in it.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(sys.prefix) / "share" / "toolwire" / "triton"
CUDA = "libcuda.so.1"  # of the driver: absent where an image is built, and not needed to compile


def use_prebuilt() -> None:
    """Have Triton load the prebuilt extension where there is no compiler."""
    if FOLDER.is_dir() and not (shutil.which("gcc") or shutil.which("clang")):
        from triton import knobs

        knobs.build.impl = find_prebuilt


def find_prebuilt(name: str, source: str, *_: object) -> str:
    """Implements `triton.knobs.build.impl`: the path of this source's build. Raises RuntimeError if there is none."""
    path = _path_of(name, source)
    if not path.is_file():
        raise RuntimeError(f"there is no C compiler, and {name} was not compiled beforehand")
    return str(path)


def build(
    name: str, source: str, folder: str, library_dirs: Sequence[str], include_dirs: Sequence[str], libraries: list[str]
) -> str:
    """Implements `triton.knobs.build.impl`: compile this source as Triton does, for `find_prebuilt`."""
    path = _path_of(name, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    includes = [*include_dirs, folder, sysconfig.get_paths()["include"]]
    # Record the libraries as needed although the stub defines no symbol: symbols are resolved when loading.
    command = ["gcc", source, "-O3", "-shared", "-fPIC", "-Wl,--no-as-needed", "-o", str(path)]
    command += [f"-l:{library}" for library in libraries]
    command += [f"-L{one}" for one in library_dirs] + [f"-I{one}" for one in includes]
    subprocess.run(command, check=True)
    return str(path)


def main() -> None:
    """Compile the extension if Triton is installed. Raises CalledProcessError, or RuntimeError if nothing was built."""
    if find_spec("triton") is None:
        return
    from triton import knobs
    from triton.backends.nvidia.driver import CudaUtils

    with tempfile.TemporaryDirectory() as folder:
        # An empty library with the driver's name: symbols are resolved where the extension is loaded.
        stub = f"{folder}/{CUDA}"
        subprocess.run(("gcc", "-shared", f"-Wl,-soname,{CUDA}", "-o", stub, "-x", "c", os.devnull), check=True)
        knobs.nvidia.libcuda_path = folder
        knobs.cache.dir = f"{folder}/cache"
        knobs.build.impl = build
        with contextlib.suppress(ImportError):  # loading it fails: there is no driver
            CudaUtils()
    if not any(FOLDER.glob("*")):
        raise RuntimeError("Triton built no extension")


def _path_of(name: str, source: str) -> Path:
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]
    return FOLDER / f"{name}-{digest}{sysconfig.get_config_var('EXT_SUFFIX')}"


if __name__ == "__main__":
    main()
