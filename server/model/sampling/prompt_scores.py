"""Log probabilities of prompt ids: logits of many tokens, computed and reduced a few lines at a time.

A prompt of 32,000 tokens and a vocabulary of 150,000 ids would make 20 GB of logits; a piece has `PIECE_BYTES` of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from server.messages import TokenLogprob
from server.model.batch import PromptTargets, Row, SampledTokens
from server.model.device import to_device
from server.model.sampling.sampler import NOT_FINITE_TEXT
from server.model.sampling.vocab_search import top_values

PIECE_BYTES = 16 << 20  # of float32 logits
MAX_PIECE_LINES = 32  # beyond, a product of matrices gains little


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Scores of one row's targets, on the device."""

    ids: Sequence[int]
    logprobs: Tensor  # [targets]; not finite where the logits are not
    top_logprobs: Tensor  # [targets, alternatives], descending
    top_ids: Tensor  # [targets, alternatives]

    def read(self) -> tuple[TokenLogprob, ...] | None:
        """One entry a target; None if the model's logits are not finite. Waits for the device."""
        if not bool(torch.isfinite(self.logprobs).all()):
            return None
        tops = [zip(*row, strict=True) for row in zip(self.top_ids.tolist(), self.top_logprobs.tolist(), strict=True)]
        entries = zip(self.ids, self.logprobs.tolist(), tops, strict=True)
        return tuple(TokenLogprob(token_id, logprob, tuple(top)) for token_id, logprob, top in entries)


def score_prompt(hidden: Tensor, head: Callable[[Tensor], Tensor], targets: PromptTargets, lines: int) -> PromptScores:
    """Log probabilities of the targets and of their likeliest alternatives, from `lines` lines of logits at a time.

    hidden [targets, hidden]. Never waits for the device.
    """
    ids = to_device(targets.ids, hidden.device).unsqueeze(1)
    parts = []
    for begin in range(0, len(ids), lines):
        logits = head(hidden[begin : begin + lines]).float()
        num_top = min(targets.num_top, logits.shape[1])
        total = torch.logsumexp(logits, -1, keepdim=True)
        own = logits.gather(1, ids[begin : begin + lines]) - total
        values, top_ids = top_values(logits, num_top) if num_top else (total[:, :0], ids[begin : begin + lines, :0])
        parts.append((own.squeeze(1), values - total, top_ids))
    return PromptScores(targets.ids, *(torch.cat(part) for part in zip(*parts, strict=True)))


def piece_lines(vocab_size: int) -> int:
    """Lines of logits computed at once."""
    return max(1, min(MAX_PIECE_LINES, PIECE_BYTES // (4 * vocab_size)))


def merge_scores(
    rows: Sequence[Row], scores: Mapping[int, PromptScores], sampled: Sequence[SampledTokens]
) -> list[SampledTokens]:
    """One SampledTokens for each row with a RowSampling or targets, of those sampled. Waits for the device."""
    results, due = [], iter(sampled)
    for i, row in enumerate(rows):
        if row.has_result:
            result = SampledTokens() if row.sampling is None else next(due)
            results.append(_with_scores(result, scores[i]) if i in scores else result)
    return results


def _with_scores(result: SampledTokens, scores: PromptScores) -> SampledTokens:
    logprobs = scores.read()
    return SampledTokens(fault=NOT_FINITE_TEXT) if logprobs is None else replace(result, prompt_logprobs=logprobs)
