"""Build of llama.cpp for comparisons, and the GGUF files of checkpoints that it serves.

    python -m benchmarks.llamacpp PEERS_DIR           PEERS_DIR/llamacpp, with all instructions that this CPU has
    python -m benchmarks.llamacpp PEERS_DIR --avx2    PEERS_DIR/llamacpp-avx2, with no better ones than AVX2

The sources of llama.cpp lie in those of the package llama-cpp-python, which pip downloads. Its server, its quantizer
and its library are compiled once; the package in Python, which `benchmarks/gguf_text.py` needs, loads that library.
Needs cmake, ninja and a C++ compiler, and ten minutes of two cores.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from benchmarks.servers import gguf_file
from tests.gguf.written import convert

VERSION = "0.3.36"  # of llama-cpp-python
PROGRAMS = ("llama-server", "llama-quantize", "llama-bench")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF",
)  # fmt: skip
AVX2 = ("-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON")


def build(peer: Path, options: tuple[str, ...]) -> None:
    """Compile it, and make its virtual environment. Raises CalledProcessError with the compiler's output before it."""
    venv.create(peer, with_pip=True)
    python = str(peer.absolute() / "bin" / "python")
    with tempfile.TemporaryDirectory() as folder:
        package = ["--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={VERSION}"]
        subprocess.run([python, "-m", "pip", "download", "-d", folder, *package], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(peer / "src", filter="data")
    sources = next(peer.glob("src/*/vendor/llama.cpp"))
    subprocess.run(["cmake", "-G", "Ninja", "-S", sources, "-B", peer / "build", *OPTIONS, *options], check=True)
    subprocess.run(["cmake", "--build", peer / "build", "--target", *PROGRAMS], check=True)
    binaries = peer.absolute() / "build" / "bin"
    for name in PROGRAMS:
        link(peer / "bin" / name, binaries / name)
    without_library = {**os.environ, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"}
    install = [python, "-m", "pip", "install", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={VERSION}"]
    subprocess.run([*install, "numpy"], check=True, env=without_library)
    link(next(peer.glob("lib/python3*/site-packages/llama_cpp")) / "lib", binaries)


def link(at: Path, to: Path) -> None:
    """Make a symbolic link, in place of one that is there."""
    at.unlink(missing_ok=True)
    at.symlink_to(to)


def make_gguf(checkpoint: Path, weights: str, peers: Path) -> None:
    """Write a checkpoint as GGUF, with weights of this type as llama.cpp's quantizer makes them, if it is not there."""
    plain, target = gguf_file(checkpoint, "BF16"), gguf_file(checkpoint, weights)
    if not plain.exists():
        convert(checkpoint, plain)
    if not target.exists():
        quantizer = peers / "llamacpp" / "bin" / "llama-quantize"
        subprocess.run([quantizer, plain, target, weights], check=True, stdout=sys.stderr)


def main() -> None:
    """Build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers_dir", type=Path)
    parser.add_argument("--avx2", action="store_true")
    options = parser.parse_args()
    name, flags = ("llamacpp-avx2", AVX2) if options.avx2 else ("llamacpp", ())
    build(options.peers_dir / name, flags)


if __name__ == "__main__":
    main()
