"""Logit adjustments before sampling: penalties, biases, banned ids, grammar masks. In place, on float32 logits.

The order is that of transformers: repetition penalty, presence and frequency penalty (OpenAI's formula), biases. Bans
and masks come last, so that no bias can lift them.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from server.messages import Sampling
from server.model.batch import RowSampling, TokenHistory
from server.model.device import to_device
from server.model.sampling.grammar import Masks

MIN_FREE_COLUMNS = 256  # for ids that the reply adds


def adjusts_logits(sampling: RowSampling) -> bool:
    """Whether `adjust_logits` changes anything for this row."""
    return bool(sampling.banned_ids) or adjusts_scores(sampling.params)


def adjusts_scores(sampling: Sampling) -> bool:
    """Whether the request has penalties or biases."""
    return bool(sampling.logit_bias) or has_penalties(sampling)


def has_penalties(sampling: Sampling) -> bool:
    """Whether earlier ids influence the next one."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0)


def adjust_logits(logits: Tensor, sampling: RowSampling, drafts: Sequence[int]) -> None:
    """Apply one row's penalties, biases and bans. logits [1 + drafts, vocab]; line j also counts drafts[:j]."""
    params = sampling.params
    if has_penalties(params):
        history = sampling.history or TokenHistory()
        counts = _token_counts(sampling, history, logits.device)
        counts.penalize(logits, params, drafts)
        history.counts = counts
    if params.logit_bias:
        biases = {token_id: bias for token_id, bias in params.logit_bias.items() if token_id < logits.shape[1]}
        values = np.array(list(biases.values()), dtype=np.float32)
        logits[:, to_device(list(biases), logits.device)] += to_device(values, logits.device)
    if sampling.banned_ids:
        logits[:, to_device(sampling.banned_ids, logits.device)] = -torch.inf


class TokenCounts:
    """The distinct ids of one sequence and how often its reply has each, on the device.

    It grows with the reply: a step copies its new ids to the device and nothing else. Takes 12 bytes a distinct id,
    twice that while it grows. `prompt_ids` are counted as seen, not as written.
    """

    def __init__(self, prompt_ids: Sequence[int], device: torch.device) -> None:
        ids = np.unique(np.asarray(prompt_ids, dtype=np.int64))
        self._columns = {token_id: column for column, token_id in enumerate(ids.tolist())}
        self._ids = torch.zeros(len(ids) + MIN_FREE_COLUMNS, dtype=torch.int64, device=device)
        self._ids[: len(ids)] = to_device(ids, device)
        self._counts = torch.zeros(len(self._ids), dtype=torch.int32, device=device)
        self._num_written = 0

    def update(self, written_ids: Sequence[int]) -> bool:
        """Count what the reply has gained; False if it has become shorter, which cannot be undone."""
        if len(written_ids) < self._num_written:
            return False
        if len(written_ids) > self._num_written:
            columns, ones = self._columns_of(written_ids[self._num_written :])
            self._counts.index_add_(0, columns, ones)
        self._num_written = len(written_ids)
        return True

    def penalize(self, logits: Tensor, sampling: Sampling, drafts: Sequence[int]) -> None:
        """Penalize lines of logits [1 + drafts, vocab] in place; line j also counts drafts[:j]."""
        num_seen = len(self._columns)
        columns, ones = self._columns_of(drafts)
        ids = self._ids[: len(self._columns)]
        for line in range(len(logits)):
            if line:
                self._counts.index_add_(0, columns[line - 1 : line], ones[line - 1 : line])
            counts = self._counts[: len(ids)]
            scores = logits[line, ids]
            if sampling.repetition_penalty != 1.0:
                penalty = sampling.repetition_penalty
                penalized = torch.where(scores < 0, scores * penalty, scores / penalty)
                penalized[num_seen:] = torch.where(counts[num_seen:] > 0, penalized[num_seen:], scores[num_seen:])
                scores = penalized
            if sampling.presence_penalty or sampling.frequency_penalty:
                costs = sampling.presence_penalty * (counts > 0) + sampling.frequency_penalty * counts.double()
                scores = scores - costs.float()
            logits[line, ids] = scores
        if drafts:
            self._counts.index_add_(0, columns, -ones)  # they may yet be rejected
        while len(self._columns) > num_seen:
            self._columns.popitem()

    def _columns_of(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The column of each id, new ones included, and as many ones; int64 and int32 [ids] on the device."""
        device, begin = self._ids.device, len(self._columns)
        columns = np.array([self._columns.setdefault(one, len(self._columns)) for one in ids], dtype=np.int64)
        if len(self._columns) > begin:
            new = list(islice(reversed(self._columns), len(self._columns) - begin))[::-1]
            if len(self._columns) > len(self._ids):
                self._ids = _grown(self._ids, 2 * len(self._columns))
                self._counts = _grown(self._counts, 2 * len(self._columns))
            self._ids[begin : len(self._columns)] = to_device(new, device)
        return to_device(columns, device), torch.ones(len(columns), dtype=torch.int32, device=device)


def _token_counts(sampling: RowSampling, history: TokenHistory, device: torch.device) -> TokenCounts:
    """The counts of the row's sequence, taken out of its history: after an exception they are made again."""
    counts, history.counts = history.counts, None
    if not isinstance(counts, TokenCounts) or not counts.update(sampling.written_ids):
        is_seen = sampling.params.repetition_penalty != 1.0
        counts = TokenCounts(sampling.prompt_ids if is_seen else (), device)
        counts.update(sampling.written_ids)
    return counts


def _grown(numbers: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(numbers, (0, length - len(numbers)))


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
