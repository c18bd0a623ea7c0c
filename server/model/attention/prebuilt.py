"""Triton's own C module, compiled where there is a compiler, for a place where there is none: `python -m` this file.

Triton compiles the module that loads and launches kernels when the first one runs, and asks for a C compiler. An image
has none, so its build runs this file; without the module no kernel would run in it, and no recording either.
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
CUDA = "libcuda.so.1"  # of the driver: not there where an image is built, and not needed to compile


def use_prebuilt() -> None:
    """Let Triton find what was compiled for it, where no compiler is at hand."""
    if FOLDER.is_dir() and not (shutil.which("gcc") or shutil.which("clang")):
        from triton import knobs

        knobs.build.impl = find


def find(name: str, source: str, *_: object) -> str:
    """What was compiled of this source, as `triton.knobs.build.impl` gives it. Raises RuntimeError if nothing was."""
    place = _place_of(name, source)
    if not place.is_file():
        raise RuntimeError(f"there is no C compiler, and {name} was not compiled beforehand")
    return str(place)


def keep(
    name: str, source: str, folder: str, library_dirs: Sequence[str], include_dirs: Sequence[str], libraries: list[str]
) -> str:
    """Compile this source as Triton does, for `find`; as `triton.knobs.build.impl`."""
    place = _place_of(name, source)
    place.parent.mkdir(parents=True, exist_ok=True)
    includes = [*include_dirs, folder, sysconfig.get_paths()["include"]]
    # Libraries are needed though nothing of the stub is: the names are looked up in them later.
    command = ["gcc", source, "-O3", "-shared", "-fPIC", "-Wl,--no-as-needed", "-o", str(place)]
    command += [f"-l:{library}" for library in libraries]
    command += [f"-L{one}" for one in library_dirs] + [f"-I{one}" for one in includes]
    subprocess.run(command, check=True)
    return str(place)


def main() -> None:
    """Compile it, if there is a Triton. Raises what the compiler raises."""
    if find_spec("triton") is None:
        return
    from triton import knobs
    from triton.backends.nvidia.driver import CudaUtils

    with tempfile.TemporaryDirectory() as folder:
        # A library of the driver's name with nothing in it: the names are looked up where the module is loaded.
        stub = f"{folder}/{CUDA}"
        subprocess.run(("gcc", "-shared", f"-Wl,-soname,{CUDA}", "-o", stub, "-x", "c", os.devnull), check=True)
        knobs.nvidia.libcuda_path = folder
        knobs.cache.dir = f"{folder}/cache"
        knobs.build.impl = keep
        with contextlib.suppress(ImportError):  # it is loaded at once, and there is no driver
            CudaUtils()
    if not any(FOLDER.glob("*")):
        raise RuntimeError("this Triton compiled nothing")


def _place_of(name: str, source: str) -> Path:
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]
    return FOLDER / f"{name}-{digest}{sysconfig.get_config_var('EXT_SUFFIX')}"


if __name__ == "__main__":
    main()
