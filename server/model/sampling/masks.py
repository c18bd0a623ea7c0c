"""Which ids a grammar allows, as bits: what grammar.py makes and sampler.py applies."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Masks:
    """One mask for each place at which a constrained row draws.

    Bit `id % 32` of word `id // 32` is set where `id` is allowed. Ids beyond the last word are not allowed.
    `owners[m]` is the row of mask m: its index among the rows with logits. A row with d drafts has d + 1 masks, one
    after the other: before the first draft, ..., after the last. Free rows have none.
    """

    owners: tuple[int, ...]
    words: NDArray[np.int32]  # [masks, ceil(vocab / 32)]
