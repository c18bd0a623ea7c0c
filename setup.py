"""Compiled CPU kernels: one library for each instruction set of the architecture that this is built for.

Without a C++ compiler they are left out, and torch computes alone; REQUIRE_KERNELS=1 makes that an error.
"""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("server/model/cpu/cpp")
ISAS = {"x86_64": ("amx", "avx512_bf16", "avx512", "avx2"), "aarch64": ("neon_bf16", "neon")}
PYTHON = "cp311"  # the oldest that can load them: they are called through ctypes and do not use Python's C API

setup(
    ext_modules=[
        Extension(
            f"server.model.cpu._{isa}",
            [str(FOLDER / f"{isa}.cpp")],
            depends=sorted(str(path) for path in FOLDER.glob("*")),
            extra_compile_args=["-O3", "-g0", "-std=c++20", "-fopenmp"],
            extra_link_args=["-fopenmp"],
            optional=not os.environ.get("REQUIRE_KERNELS"),
            py_limited_api=True,
        )
        for isa in ISAS.get(platform.machine(), ())
    ],
    options={"bdist_wheel": {"py_limited_api": PYTHON}},
)
