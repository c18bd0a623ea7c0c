"""Triton's prebuilt C extension, for images without the C compiler that Triton needs before the first kernel runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from triton import knobs
from triton.runtime.build import compile_module_from_src

from server.model.attention import prebuilt

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for builds, and Triton on a machine without a compiler."""
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "kept")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(knobs.build, "impl", None)
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return tmp_path


def load() -> None:
    """Have Triton compile and load an extension."""
    compile_module_from_src(SOURCE, "answer")


def test_triton_loads_the_prebuilt_extension(no_compiler: Path) -> None:
    """Loading gets as far as the missing PyInit: the test's C source is no Python module."""
    source = no_compiler / "answer.c"
    source.write_text(SOURCE, encoding="utf-8")
    prebuilt.build("answer", str(source), str(no_compiler), [], [], [])
    prebuilt.use_prebuilt()
    with pytest.raises(ImportError, match="PyInit_answer"):
        load()


def test_a_missing_build_is_reported(no_compiler: Path) -> None:
    """Builds are identified by their source, not by name: another Triton's extension is not loaded."""
    prebuilt.use_prebuilt()
    with pytest.raises(RuntimeError, match="C compiler"):
        load()
    prebuilt.FOLDER.mkdir()
    prebuilt.use_prebuilt()
    with pytest.raises(RuntimeError, match="not compiled beforehand"):
        load()


def test_an_available_compiler_is_used(no_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prebuilt.FOLDER.mkdir()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    prebuilt.use_prebuilt()
    assert knobs.build.impl is None


def test_the_extension_records_libraries_that_are_absent_at_build_time(no_compiler: Path) -> None:
    """Without the driver's library recorded as needed, its symbols would not be found where there is a driver."""
    source, stub = no_compiler / "answer.c", no_compiler / "libabsent.so.1"
    source.write_text(SOURCE, encoding="utf-8")
    named = ("gcc", "-shared", "-Wl,-soname,libabsent.so.1", "-o", stub, "-x", "c", "/dev/null")
    subprocess.run(named, check=True)
    built = prebuilt.build("answer", str(source), str(no_compiler), [str(no_compiler)], [], ["libabsent.so.1"])
    stub.unlink()
    program = f"import ctypes; ctypes.CDLL({built!r})"
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=False)
    assert "libabsent.so.1" in done.stderr
