"""ctypes bindings of the compiled CPU kernels: the structures of `cpp/step.h`, and one library an instruction set.

The kernels are compiled when the package is installed, if there is a C++ compiler, for every set of the architecture.
"""

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

INTERFACE = 5  # of the functions and structures, as in `cpp/step.h`
ISAS = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "neon_bf16", "neon")  # the fastest first
# Intel's CPUs start a bfloat16 product every second cycle and two of float32 in each (docs/internals/lablog.md).
INTEL_ISAS = ("amx", "avx512_vnni", "avx512_bf16", "avx512", "avx2")
CPU_INFO = Path("/proc/cpuinfo")


def _fields(integers: str, numbers: str, pointers: str) -> list[tuple[str, Any]]:
    kinds = ((integers, ctypes.c_int64), (numbers, ctypes.c_float), (pointers, ctypes.c_void_p))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class QuantizedStruct(ctypes.Structure):
    """A matrix of few bits, where a pointer to weights has its lowest bit set."""

    _fields_ = _fields(
        "width inputs outputs group offset scale_type super_group input_bits",
        "",
        "codes scales minimums super_scales super_minimums",
    )


class LayerStruct(ctypes.Structure):
    """One decoder layer's weights."""

    _fields_ = _fields(
        "",
        "",
        "query key value output gate up down query_bias key_bias value_bias attention_norm mlp_norm "
        "query_norm key_norm mixer experts",
    )


class MixerStruct(ctypes.Structure):
    """Weights of a layer's recurrent state, in place of its attention."""

    _fields_ = _fields("", "", "mixed gate rates decay output convolution decay_rate dt_bias norm")


class ExpertsStruct(ctypes.Structure):
    """A layer's experts, in place of its MLP."""

    _fields_ = _fields(
        "count chosen inner shared_inner normalizes", "", "router gate_up down shared_gate shared_up shared_down"
    )


class ModelStruct(ctypes.Structure):
    """A decoder's sizes and weights."""

    _fields_ = _fields(
        "is_bf16 hidden inner heads kv_heads head_dim num_layers rotated has_gates "
        "key_heads value_heads key_dim value_dim kernel is_grouped",
        "epsilon scaling",
        "layers norm",
    )


class StepStruct(ctypes.Structure):
    """One step of a whole decoder."""

    _fields_ = _fields(
        "num_tokens num_rows num_threads block_size of_bytes",
        "",
        "rows keys values slots convolutions states embedded cosines sines results scratch adapters",
    ) + _fields("max_rank", "", "")


class LowRankStruct(ctypes.Structure):
    """What an adapter adds to one projection (`cpp/adapters.h`)."""

    _fields_ = _fields("rank", "", "down up")


class AdapterLayerStruct(ctypes.Structure):
    """An adapter's parts of one layer, in the order of `ADAPTER_PARTS`."""

    _fields_ = [("parts", LowRankStruct * 8)]


class AttentionStruct(ctypes.Structure):
    """One layer's attention in a step."""

    _fields_ = _fields(
        "is_bf16 heads kv_heads head_dim num_tokens num_rows num_threads block_size of_bytes",
        "scaling",
        "rows queries new_keys new_values keys values results scratch",
    )


@functools.cache
def open_library(isa: str) -> ctypes.CDLL | None:
    """The kernels for this instruction set, or None where they were not compiled or the CPU lacks it."""
    path = Path(__file__).parent / f"_{isa}.abi3.so"
    if not path.is_file():
        return None
    try:
        library = load_library(path)
    except (OSError, AttributeError) as error:
        log.warning("CPU kernels for %s cannot be loaded: %s", isa, error)
        return None
    return library if library.toolwire_is_supported() else None


def load_library(path: Path) -> ctypes.CDLL:
    """Kernels with their declarations, whatever the CPU. Raises OSError unless they are of this version."""
    library = ctypes.CDLL(str(path))
    if library.toolwire_interface() != INTERFACE:
        raise OSError(f"{path} is of another version of toolwire: run `make install` again")
    return _declare(library)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    address, integer = ctypes.c_void_p, ctypes.c_int64
    library.toolwire_step_bytes.argtypes = library.toolwire_compute.argtypes = (address, address)
    library.toolwire_attention_bytes.argtypes = library.toolwire_attend.argtypes = (address,)
    library.toolwire_step_bytes.restype = library.toolwire_attention_bytes.restype = integer
    library.toolwire_project.argtypes = (integer, address, integer, integer, address, integer, address, integer)
    library.toolwire_panel_bytes.argtypes = (integer, integer, integer)
    library.toolwire_likeliest_bytes.argtypes = (integer, integer)
    library.toolwire_panel_bytes.restype = library.toolwire_likeliest_bytes.restype = integer
    library.toolwire_likeliest.argtypes = (*library.toolwire_project.argtypes[:-1], address, integer)
    library.toolwire_lay_out.argtypes = (integer, address, integer, integer, address, integer)
    library.toolwire_read.argtypes = (address, address, integer, address, integer)
    library.toolwire_fit.argtypes = (integer, address, integer, address, address, integer)
    library.toolwire_round.argtypes = (integer, address, integer, integer, *4 * (address,), integer)
    library.toolwire_pack.argtypes = (address, integer, integer, integer, address, integer)
    for name in ("compute", "project", "likeliest", "attend", "lay_out", "read", "fit", "round", "pack"):
        getattr(library, f"toolwire_{name}").restype = None
    return library


def available_isas() -> tuple[str, ...]:
    """The instruction sets that the CPU has and that kernels were compiled for, the fastest first."""
    is_intel = CPU_INFO.is_file() and "GenuineIntel" in CPU_INFO.read_text(encoding="ascii", errors="replace")
    return tuple(isa for isa in (INTEL_ISAS if is_intel else ISAS) if open_library(isa) is not None)
