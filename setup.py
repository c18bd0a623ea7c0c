"""Compiled CPU kernels: one library for each instruction set of the architecture that this is built for.

Without a C++ compiler they are left out, and torch computes alone; REQUIRE_KERNELS=1 makes that an error.
"""

import os
import platform
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("server/model/cpu/cpp")
ISAS = {"x86_64": ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2"), "aarch64": ("neon_bf16", "neon")}
PYTHON = "cp311"  # the oldest that can load them: they are called through ctypes and do not use Python's C API


class BuildKernels(build_ext):
    """Takes a library that is newer than its sources: pip builds for every set of extras, for minutes each time."""

    def build_extension(self, ext: Extension) -> None:
        """Copy the library that is there, or compile it."""
        built, target = Path(self.get_ext_filename(ext.name)), Path(self.get_ext_fullpath(ext.name))
        sources = [Path(name) for name in (*ext.sources, *ext.depends, __file__)]
        if built.is_file() and built.stat().st_mtime > max(path.stat().st_mtime for path in sources):
            if built.resolve() != target.resolve():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(built, target)
        else:
            super().build_extension(ext)


setup(
    cmdclass={"build_ext": BuildKernels},
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
