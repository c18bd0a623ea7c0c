"""The likeliest ids, found on the device: what a recorded decode step can draw without the host.

The same ids as `sampler.draw_ids` gives rows without temperature, penalties, masks or log probabilities.
"""

import torch
from torch import Tensor

from server.model.batch import Draw
from server.model.sampling.penalties import changes_logits
from server.model.sampling.sampler import NOT_FINITE
from server.model.sampling.vocab_search import first_peak


def is_greedy(draw: Draw) -> bool:
    """Whether nothing but the likeliest id is wanted."""
    sampling = draw.sampling
    return sampling.temperature <= 0 and sampling.num_logprobs is None and not changes_logits(draw)


def likeliest(logits: Tensor) -> Tensor:
    """[lines, vocab] -> the likeliest id of each line, NOT_FINITE where the line is not finite. int64 [lines]."""
    is_finite = torch.isfinite(logits.sum(-1, dtype=torch.float32))
    return torch.where(is_finite, first_peak(logits)[1], NOT_FINITE)
