"""Logit adjustments before sampling: penalties, biases, banned ids, grammar masks. In place, on float32 logits.

The order is that of transformers: repetition penalty, presence and frequency penalty (OpenAI's formula), biases. Bans
and masks come last, so that no bias can lift them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from server.messages import Sampling
from server.model.batch import Draw
from server.model.device import to_device
from server.model.sampling.grammar import Masks


def adjusts_logits(draw: Draw) -> bool:
    """Whether `adjust_logits` changes anything for this row."""
    return bool(draw.banned_ids) or adjusts_scores(draw.sampling)


def adjusts_scores(sampling: Sampling) -> bool:
    """Whether the request has penalties or biases."""
    return bool(sampling.logit_bias) or has_penalties(sampling)


def has_penalties(sampling: Sampling) -> bool:
    """Whether earlier ids influence the next one."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0)


def adjust_logits(logits: Tensor, draw: Draw, drafts: Sequence[int]) -> None:
    """Apply one row's penalties, biases and bans. logits [1 + drafts, vocab]; line j also counts drafts[:j]."""
    sampling = draw.sampling
    if has_penalties(sampling):
        for j in range(logits.shape[0]):
            _apply_penalties(logits[j], sampling, draw.prompt_ids, [*draw.written_ids, *drafts[:j]])
    if sampling.logit_bias:
        biases = {token_id: bias for token_id, bias in sampling.logit_bias.items() if token_id < logits.shape[1]}
        values = np.array(list(biases.values()), dtype=np.float32)
        logits[:, to_device(list(biases), logits.device)] += to_device(values, logits.device)
    if draw.banned_ids:
        logits[:, to_device(draw.banned_ids, logits.device)] = -torch.inf


def apply_masks(logits: Tensor, masks: Masks, first_lines: Sequence[int]) -> None:
    """Set the logits of ids that the masks forbid to -inf. `first_lines[i]` is the first line of row i in `logits`."""
    lines: list[int] = []
    for m, owner in enumerate(masks.owners):
        is_next = m > 0 and masks.owners[m - 1] == owner
        lines.append(lines[-1] + 1 if is_next else first_lines[owner])
    allowed = _unpack_to(masks.words, logits.shape[1], logits.device)
    if lines == list(range(logits.shape[0])):
        logits.masked_fill_(~allowed, -torch.inf)
    else:
        for m, line in enumerate(lines):
            logits[line].masked_fill_(~allowed[m], -torch.inf)


def unpack_masks(words: Tensor, vocab_size: int) -> Tensor:
    """int32 words [masks, words] on a GPU -> bool [masks, vocab]; ids beyond the words are not allowed."""
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    bits = (words.view(torch.uint8).unsqueeze(-1) >> shifts).bitwise_and_(1)  # little endian
    return _fit(bits.flatten(1).view(torch.bool), vocab_size)


def _unpack_to(words: np.ndarray, vocab_size: int, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return unpack_masks(to_device(words, device), vocab_size)
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return _fit(torch.from_numpy(bits).view(torch.bool), vocab_size)


def _fit(allowed: Tensor, vocab_size: int) -> Tensor:
    missing = vocab_size - allowed.shape[1]
    return torch.nn.functional.pad(allowed, (0, missing)) if missing > 0 else allowed[:, :vocab_size]


def _apply_penalties(logits: Tensor, sampling: Sampling, prompt_ids: Sequence[int], written_ids: Sequence[int]) -> None:
    written, counts = np.unique(np.asarray(written_ids, dtype=np.int64), return_counts=True)
    if sampling.repetition_penalty != 1.0:
        seen = np.union1d(written, np.asarray(prompt_ids, dtype=np.int64))
        ids = to_device(seen, logits.device)
        scores = logits[ids]
        penalty = sampling.repetition_penalty
        logits[ids] = torch.where(scores < 0, scores * penalty, scores / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        costs = (sampling.presence_penalty + sampling.frequency_penalty * counts).astype(np.float32)
        logits[to_device(written, logits.device)] -= to_device(costs, logits.device)
