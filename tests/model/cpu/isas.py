"""Instruction sets that tests of the CPU kernels run with."""

import pytest

from server.model.cpu.library import available_isas

_BEST, *_OTHERS = available_isas() or ("",)
# The set that is chosen here; the others with `--long`. That every set agrees with float64 is part of `make test`
# (`test_selection.py`).
TESTED_ISAS = [
    _BEST if _BEST else pytest.param("", marks=pytest.mark.skip(reason="no kernels for this CPU")),
    *(pytest.param(isa, marks=pytest.mark.long) for isa in _OTHERS),
]
