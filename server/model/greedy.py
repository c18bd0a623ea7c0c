"""The likeliest ids, found on the device: what a recorded decode step can draw without the host.

The same ids and faults as `sampler.draw_ids` gives rows without temperature, penalties, masks or log probabilities.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from server.model.batch import Draw, Drawn
from server.model.lookup import first_peak
from server.model.penalties import changes_logits
from server.model.sampler import NO_NUMBER, DrawRow, accept

NOT_FINITE = -1


def is_greedy(draw: Draw) -> bool:
    """Whether nothing but the likeliest id is wanted."""
    sampling = draw.sampling
    return sampling.temperature <= 0 and sampling.num_logprobs is None and not changes_logits(draw)


def likeliest(logits: Tensor) -> Tensor:
    """[lines, vocab] -> the likeliest id of each line, NOT_FINITE where the line is not finite. int64 [lines]."""
    is_finite = torch.isfinite(logits.sum(-1, dtype=torch.float32))
    return torch.where(is_finite, first_peak(logits)[1], NOT_FINITE)


def drawn(ids: Tensor, rows: Sequence[DrawRow]) -> list[Drawn]:
    """The rows' ids, and the drafts that they accept, as they are told. Waits for the device."""
    found = ids.tolist()
    return accept(found, [NO_NUMBER if one == NOT_FINITE else None for one in found], rows)
