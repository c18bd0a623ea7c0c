"""An image has no C compiler, and Triton wants one before the first kernel runs."""

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
    """A folder for what is compiled, and Triton on a machine that has nothing to compile with."""
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "kept")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(knobs.build, "impl", None)
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return tmp_path


def load() -> None:
    """Have Triton compile and load its module."""
    compile_module_from_src(SOURCE, "answer")


def test_triton_finds_what_was_compiled_beforehand(no_compiler: Path) -> None:
    """It gets as far as loading it; a function of C is no module of Python's, which is all that is wrong then."""
    source = no_compiler / "answer.c"
    source.write_text(SOURCE, encoding="utf-8")
    prebuilt.build("answer", str(source), str(no_compiler), [], [], [])
    prebuilt.use_prebuilt()
    with pytest.raises(ImportError, match="PyInit_answer"):
        load()


def test_what_was_not_compiled_is_said_to_be_missing(no_compiler: Path) -> None:
    """Another Triton's module is not this one's: it is told by the source, not by its name."""
    prebuilt.use_prebuilt()
    with pytest.raises(RuntimeError, match="C compiler"):
        load()
    prebuilt.FOLDER.mkdir()
    prebuilt.use_prebuilt()
    with pytest.raises(RuntimeError, match="not compiled beforehand"):
        load()


def test_where_there_is_a_compiler_it_is_used(no_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prebuilt.FOLDER.mkdir()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    prebuilt.use_prebuilt()
    assert knobs.build.impl is None


def test_a_module_needs_the_libraries_that_were_not_there(no_compiler: Path) -> None:
    """Without the driver's name in it, the module would find none of the driver's functions where there is one."""
    source, stub = no_compiler / "answer.c", no_compiler / "libabsent.so.1"
    source.write_text(SOURCE, encoding="utf-8")
    named = ("gcc", "-shared", "-Wl,-soname,libabsent.so.1", "-o", stub, "-x", "c", "/dev/null")
    subprocess.run(named, check=True)
    kept = prebuilt.build("answer", str(source), str(no_compiler), [str(no_compiler)], [], ["libabsent.so.1"])
    stub.unlink()
    asked = f"import ctypes; ctypes.CDLL({kept!r})"
    done = subprocess.run((sys.executable, "-c", asked), capture_output=True, text=True, check=False)
    assert "libabsent.so.1" in done.stderr
