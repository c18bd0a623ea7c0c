"""Selects the compiled CPU kernels at start: those of the best instruction set that agree with float64.

A compiler or a CPU that computes wrongly costs speed and a line in the log, never a wrong reply.
"""

import functools
import logging
from ctypes import CDLL

from server.errors import CannotStart
from server.model.cpu.library import available_isas, open_library
from server.model.cpu.self_check import find_difference

log = logging.getLogger(__name__)


@functools.cache
def choose_library(requested: str) -> CDLL | None:
    """The kernels for `--cpu-isa`; None if torch computes.

    Raises CannotStart if the CPU lacks the requested instruction set, or if no kernels were compiled for it.
    """
    if requested == "torch":
        return None
    available = available_isas()
    if requested != "auto" and requested not in available:
        raise CannotStart(
            f"--cpu-isa {requested}: this CPU, or the installation, has kernels for {_listed(available)} only"
        )
    for isa in available if requested == "auto" else (requested,):
        library = open_library(isa)
        if library is not None and agrees(isa, library):
            log.info("CPU kernels: %s", isa)
            return library
    if not available:
        log.info("CPU kernels are off: none were compiled (which takes g++ when toolwire is installed) for this CPU")
    return None


def agrees(isa: str, library: CDLL) -> bool:
    """Whether these kernels agree with float64; logs it if not."""
    difference = find_difference(library)
    if difference is not None:
        log.warning("CPU kernels for %s are off: %s differ from float64", isa, difference)
    return difference is None


def _listed(available: tuple[str, ...]) -> str:
    return ", ".join((*available, "torch"))
