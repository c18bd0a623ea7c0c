"""Drives a Runner with hand-made batches: streams with their own blocks, chunked prompts, optional drafts."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from server.messages import Sampling, TokenLogprob
from server.model.batch import Batch, Row, RowSampling, SampledTokens
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.runner import Runner
from server.model.sampling.grammar import LlguidanceGrammars
from server.settings import EngineSettings
from tests.caches import latest
from tests.checkpoints import VOCAB_SIZE, Kind, qwen_tokenizer, tiny_checkpoint

BLOCK_SIZE = 16
GREEDY = Sampling(max_tokens=64, temperature=0.0)


@latest
def loaded(kind: Kind, kernels: bool = True) -> LoadedModel:
    """The loaded model; with the compiled kernels or with torch alone."""
    settings = EngineSettings(device="cpu", cpu_isa="auto" if kernels else "torch")
    return load(tiny_checkpoint(kind), settings, lambda fraction: None)


@latest
def reference(kind: Kind) -> Any:
    """The same checkpoint in transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint(kind)).eval()


@latest
def grammars() -> LlguidanceGrammars:
    """Grammars over the vocabulary of all kinds."""
    return LlguidanceGrammars((qwen_tokenizer() / "tokenizer.json").read_bytes(), VOCAB_SIZE, (0,))


def generate(kind: Kind, prompt: Sequence[int], count: int) -> list[int]:
    """transformers' greedy ids."""
    return list(_generated(kind, tuple(prompt), count))


@functools.lru_cache(1024)
def _generated(kind: Kind, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    output = reference(kind).generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=None
    )
    return tuple(output[0, len(prompt) :].tolist())


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random ids without control tokens."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(0, 150_000, (length,), generator=generator).tolist()


@dataclass
class Stream:
    """One sequence. `drafter` proposes drafts from the ids written so far."""

    prompt: Sequence[int]
    blocks: Sequence[int]
    sampling: Sampling = GREEDY
    seed: int = 0
    slot: int | None = None
    adapter: int = 0
    chunk: int = 1 << 20
    drafter: Callable[[list[int]], list[int]] | None = None
    num_computed: int = 0
    written: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    fault: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.fault is not None or len(self.written) >= self.sampling.max_tokens

    def row(self) -> Row:
        ids = [*self.prompt, *self.written]
        taken = ids[self.num_computed : self.num_computed + self.chunk]
        if self.num_computed + len(taken) < len(ids):
            return Row(taken, self.num_computed, self.blocks, 0, None, self.slot, adapter=self.adapter)
        drafts = self.drafter(self.written) if self.drafter and self.written else []
        sampling = RowSampling(self.sampling, self.seed, self.prompt, list(self.written))
        ids, num_logits = [*taken, *drafts], 1 + len(drafts)
        return Row(ids, self.num_computed, self.blocks, num_logits, sampling, self.slot, adapter=self.adapter)


def compute(runner: Runner, rows: Sequence[Row], masks: Any = None) -> list[SampledTokens]:
    """Compute and sample one step of these rows."""
    batch = Batch(tuple(rows))
    return runner.sample(runner.launch(batch), batch, masks).read()


def step(runner: Runner, streams: Sequence[Stream], masks: Any = None) -> None:
    """One step of all unfinished streams."""
    unfinished = [stream for stream in streams if not stream.is_finished]
    rows = [stream.row() for stream in unfinished]
    sampled = iter(compute(runner, rows, masks))
    for stream, row in zip(unfinished, rows, strict=True):
        stream.num_computed += len(row.token_ids)
        if not row.num_logits:
            continue
        result = next(sampled)
        stream.num_computed += len(result.token_ids) - row.num_logits
        stream.written.extend(result.token_ids)
        stream.logprobs.extend(result.logprobs or ())
        stream.fault = result.fault
        del stream.written[stream.sampling.max_tokens :]
    assert next(sampled, None) is None


def run(runner: Runner, streams: Sequence[Stream]) -> None:
    """Run until all streams are finished."""
    while any(not stream.is_finished for stream in streams):
        step(runner, streams)
