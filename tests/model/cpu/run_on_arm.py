"""Kernels for 64-bit ARM on an emulated CPU: make test-arm, or python -m tests.model.cpu.run_on_arm

Compiles `drive_kernels.cpp` with each set for ARM by Debian's cross compiler, runs it under qemu-user, and compares its
results with those of this machine's own kernels, which the other tests compare with float64.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.model.cpu.library import available_isas
from tests.live import ROOT

SOURCE, INCLUDED = Path(__file__).parent / "drive_kernels.cpp", ROOT / "server/model/cpu/cpp"
FLAGS = ("-O1", "-std=c++20", "-fopenmp", "-Wno-psabi", "-I", str(INCLUDED))
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
CPUS = {"neon": "cortex-a57", "neon_bf16": "max"}  # the first without bfloat16 products
PRODUCTS, FEW_BITS, LAYERS = 80 * 39, 48 * 40 * 39, 19 * 64  # numbers in one result of each
# What one element type writes, and how far sets may differ: sums of products, and layers of results of magnitude 1.
RESULTS = (*[(f"products {size}", PRODUCTS) for size in (96, 544, 1056)],
           *[(f"products of {width} bits", FEW_BITS) for width in (4, 5, 6, 8)],
           *[(f"{name} layers", LAYERS) for name in ("dense", "hybrid", "grouped hybrid")])  # fmt: skip
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}


def main() -> int:
    """Print a line a set; returns the exit code."""
    isas = available_isas()
    if not isas:
        print("this machine has no kernels of its own to compare with")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        expected = _run(isas[0], ["g++"], [], Path(folder))
        found = {
            isa: _run(isa, [COMPILER, "-static"], [EMULATOR, "-cpu", cpu], Path(folder)) for isa, cpu in CPUS.items()
        }
    failed = expected is None or any(values is None for values in found.values())
    for isa, values in found.items():
        if values is None or expected is None:
            continue
        for name, difference, allowed in _differences(values, expected):
            failed |= not difference <= allowed
            print(f"{isa:10} {name:32} differs by {difference:.1e} from {isas[0]}, allowed {allowed:.0e}")
    print("failed" if failed else "ok: bits do not depend on how tokens are cut into steps, and results are close")
    return int(failed)


def _run(isa: str, compiler: list[str], emulator: list[str], folder: Path) -> NDArray[np.float32] | None:
    program, results = folder / f"drive-{isa}", folder / f"{isa}.bin"
    subprocess.run([*compiler, *FLAGS, f'-DKERNELS="{isa}.cpp"', str(SOURCE), "-o", str(program)], check=True)
    ended = subprocess.run([*emulator, str(program), str(results)], capture_output=True, text=True, timeout=600)
    if ended.returncode:
        print(f"{isa}: exit code {ended.returncode}: {ended.stdout}{ended.stderr}")
        return None
    return np.fromfile(results, dtype=np.float32)


def _differences(found: NDArray[np.float32], expected: NDArray[np.float32]) -> Iterator[tuple[str, float, float]]:
    """Name, largest difference (relative to 1 and the value) and what is allowed, of each result."""
    assert len(found) == len(expected) == len(TOLERANCES) * sum(count for _, count in RESULTS)
    begin = 0
    for dtype, tolerance in TOLERANCES.items():
        for name, count in RESULTS:
            own, other = found[begin : begin + count], expected[begin : begin + count]
            begin += count
            largest = float(np.max(np.abs(own - other) / (1 + np.abs(other))))
            yield f"{name} in {dtype}", largest, tolerance if "layers" in name else TOLERANCES["float32"]


if __name__ == "__main__":
    sys.exit(main())
