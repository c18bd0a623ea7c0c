"""Kernels of AVX-512 and AMX for CPUs that lack them: the same sources, compiled with emulated intrinsics."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from tests.checkpoints import cache_folder
from tests.live import ROOT

SOURCES = ROOT / "server/model/cpu/cpp"
HEADERS = Path(__file__).parent / "emulated"
FLAGS = ("-O1", "-g0", "-std=c++20", "-fopenmp", "-fPIC", "-shared", "-mavx2", "-mfma", "-mf16c", "-Wno-psabi")


def emulated_library(isa: str) -> Path:
    """The compiled kernels of this set; compiled when a source changes, in half a minute."""
    sources = sorted((*SOURCES.iterdir(), *HEADERS.iterdir()))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    target = cache_folder() / f"emulated-{isa}-{digest}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        text = (SOURCES / f"{isa}.cpp").read_text(encoding="utf-8")
        # Without the pragma the compiler uses none of these instructions by itself, and it has no registers for `asm`.
        lines = [line for line in text.splitlines() if not line.startswith("#pragma GCC target") and "asm(" not in line]
        source, compiled = Path(folder) / f"{isa}.cpp", Path(folder) / "compiled.so"
        source.write_text("\n".join(lines), encoding="utf-8")
        command = ["g++", *FLAGS, "-I", str(HEADERS), "-I", str(SOURCES), str(source), "-o", str(compiled)]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "LC_ALL": "C"})
        compiled.rename(target)  # complete, with several writers too
    return target
