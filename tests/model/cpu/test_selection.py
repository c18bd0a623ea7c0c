"""Choice of the compiled CPU kernels at start."""

import ctypes
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from server.errors import CannotStart
from server.model.cpu import library, selection
from server.model.cpu.library import ISAS, QuantizedStruct, available_isas, open_library
from server.model.cpu.selection import choose_library
from server.model.cpu.self_check import SIZES, find_difference

AVAILABLE = available_isas()
needs_kernels = pytest.mark.skipif(not AVAILABLE, reason="no kernels for this CPU")


class BrokenLibrary:
    """Kernels as a wrong compiler makes them: the first result of one function is wrong, or for one width alone."""

    def __init__(self, library: Any, broken: str, width: int | None = None) -> None:
        self._library = library
        self._broken = f"toolwire_{broken}"
        self._width = width

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        if name != self._broken:
            return function

        def call(*arguments: Any) -> None:
            function(*arguments)
            if self._width is not None and width_of(arguments[4]) != self._width:
                return
            if name == "toolwire_likeliest":
                ctypes.c_int64.from_address(arguments[6]).value ^= 1
            else:
                results = arguments[6] if name == "toolwire_project" else arguments[-1]._obj.results
                ctypes.c_float.from_address(results).value += 0.01 if self._width is None else 10.0

        return call


def width_of(weights: int) -> int:
    """Bits of the codes at this address; 0 of plain weights."""
    return int(QuantizedStruct.from_address(weights - 1).width) if weights % 2 else 0


@needs_kernels
@pytest.mark.parametrize(("vendor", "first"), [("GenuineIntel", "avx512_vnni"), ("AuthenticAMD", "avx512_bf16")])
def test_intel_s_bfloat16_products_come_after_float32_s(
    vendor: str, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Intel's CPUs they take a third more time than products of widened weights, but were chosen first."""
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"vendor_id\t: {vendor}\nmodel name\t: \xb5\n", encoding="utf-8")
    monkeypatch.setattr(library, "CPU_INFO", cpu_info)
    monkeypatch.setattr(library, "open_library", lambda isa: object())
    isas = [isa for isa in available_isas() if isa.startswith("avx512")]
    assert isas[0] == first and set(isas) == {"avx512_bf16", "avx512_vnni", "avx512"}
    assert available_isas()[0] == "amx"


@needs_kernels
@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_form_of_the_kernels_agrees_with_float64(isa: str) -> None:
    assert find_difference(open_library(isa)) is None  # type: ignore[arg-type]


@needs_kernels
@pytest.mark.parametrize(
    ("broken", "width", "form"),
    [
        ("project", None, "products in panels"),
        ("project", 5, "products of 5 bits"),
        ("likeliest", None, "products in panels"),
        ("likeliest", 4, "products of 4 bits"),
        ("attend", None, "attention"),
        ("compute", None, "layers"),
    ],
)
def test_the_check_at_start_finds_a_kernel_that_differs(broken: str, width: int | None, form: str) -> None:
    library: Any = BrokenLibrary(open_library(AVAILABLE[0]), broken, width)
    assert (find_difference(library) or "").startswith(form)


@needs_kernels
def test_kernels_that_differ_are_not_used_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong compiler must cost speed, never a reply."""
    best = AVAILABLE[0]
    monkeypatch.setattr(
        selection,
        "open_library",
        lambda isa: BrokenLibrary(open_library(isa), "attend") if isa == best else open_library(isa),
    )
    selection.choose_library.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            chosen = [choose_library("auto") for _ in range(3)]
        assert all(library is (open_library(AVAILABLE[1]) if len(AVAILABLE) > 1 else None) for library in chosen)
        assert sum("differ from float64" in line for line in caplog.messages) == 1
        assert choose_library(best) is None, "a forced set that differs leaves everything to torch"
    finally:
        selection.choose_library.cache_clear()


@pytest.mark.parametrize("isa", sorted(set(ISAS) - set(AVAILABLE)))
def test_an_instruction_set_that_the_cpu_lacks_is_refused_by_naming_those_it_has(isa: str) -> None:
    with pytest.raises(CannotStart, match=f"{isa}.*{', '.join((*AVAILABLE, 'torch'))}"):
        choose_library(isa)


def test_torch_can_be_chosen_and_the_best_set_is_the_default() -> None:
    assert choose_library("torch") is None
    assert choose_library("auto") is (open_library(AVAILABLE[0]) if AVAILABLE else None)


def test_the_check_leaves_random_numbers_alone() -> None:
    """Seeded requests draw the same, whatever was checked before."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for isa in AVAILABLE:
        find_difference(open_library(isa))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)


def test_sizes_of_the_check_reach_both_layouts_of_weights() -> None:
    """A check of panels alone would pass where rows are wrong."""
    for isa in AVAILABLE:
        library = open_library(isa)
        assert library is not None
        packed = {form: library.toolwire_panel_bytes(0, size, 16) > 0 for form, size in SIZES.items()}
        assert packed == {"products in panels": True, "products in rows": False, "long products": False}
