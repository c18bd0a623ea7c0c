"""Sampling on static buffers gives the ids of the sampler, and nothing in it synchronizes."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from server.messages import Sampling
from server.model.attention.gpu import CudaKvPool
from server.model.batch import Batch, Row, RowSampling
from server.model.graphs.decode_graphs import DecodeGraphs, StaticDecode
from server.model.graphs.graph_sampler import MAX_TOP_K, GraphSampler, SamplingVariant
from server.model.loading.loader import load
from server.model.runner import Runner, pool_shape
from server.model.sampling.grammar import Masks
from server.model.sampling.sampler import PendingSamples, SamplingRow, sample_ids
from server.settings import EngineSettings
from tests.checkpoints import tiny_checkpoint
from tests.model.attention import reference_kernels
from tests.model.drive import BLOCK_SIZE, GREEDY, Stream, loaded, prompt_of, step

CPU = torch.device("cpu")
VOCAB = 1000
SYNCHRONIZING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item")
SAMPLINGS = {
    "greedy": GREEDY,
    "full": Sampling(max_tokens=4, temperature=1.1),
    "min_p": Sampling(max_tokens=4, temperature=0.9, min_p=0.2),
    "top_k": Sampling(max_tokens=4, temperature=1.5, top_k=MAX_TOP_K),
    "nucleus": Sampling(max_tokens=4, temperature=0.7, top_k=20, top_p=0.8, min_p=0.05),
}


def rows_of(chance: random.Random, names: Sequence[str]) -> list[SamplingRow]:
    """One row a line; some lines are not sampled."""
    rows = []
    for line, name in enumerate(names):
        if chance.random() < 0.9:
            written = [1] * chance.randint(0, 9)
            banned = tuple(chance.sample(range(VOCAB), 300)) if chance.random() < 0.2 else ()
            rows.append(
                SamplingRow(RowSampling(SAMPLINGS[name], chance.getrandbits(40), [1], written, banned), (), line)
            )
    return rows


def masks_for(chance: random.Random, rows: Sequence[SamplingRow], words: int) -> Masks:
    """Masks of some rows; one allows nothing."""
    owners = tuple(sorted(chance.sample(range(len(rows)), (len(rows) + 1) // 2)))
    bits = np.random.default_rng(chance.getrandbits(30)).integers(-(2**31), 2**31, (len(owners), words), dtype=np.int32)
    bits[-1] = 0
    return Masks(owners, bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", [-(-VOCAB // 32), 20])
def test_any_mix_of_rows_gives_the_ids_of_the_sampler(dtype: torch.dtype, words: int) -> None:
    """Buffers are reused: stale values of the previous step must have no effect."""
    sampler = GraphSampler(12, VOCAB, CPU)
    seen = set()
    for seed in range(60):
        chance = random.Random(seed)
        names = [chance.choice(tuple(SAMPLINGS)) for _ in range(chance.randint(1, 8))]
        rows = rows_of(chance, names) or [SamplingRow(RowSampling(GREEDY, 1, [1], []), (), 0)]
        logits = 3 * torch.randn((12, VOCAB), generator=torch.Generator().manual_seed(seed))
        logits = logits.to(dtype)
        if seed % 5 == 0:
            logits[rows[-1].first_line, 7] = torch.nan
        masks = masks_for(chance, rows, words) if seed % 2 else None
        expected = sample_ids(logits[: len(names)].clone(), rows, masks)
        variant = sampler.stage(rows, len(names), masks)
        assert variant is not None
        before = logits.clone()
        found = sampler.sample(logits, variant)
        assert torch.equal(logits.nan_to_num(), before.nan_to_num()), "sampling does not modify the logits"
        assert PendingSamples(found, rows).read() == expected.read()
        seen.add(variant)
    assert len(seen) > 6, "many variants occurred"


def test_rows_that_need_more_candidates_are_left_to_the_sampler() -> None:
    sampler = GraphSampler(2, VOCAB, CPU)

    def fits(sampling: Sampling = GREEDY, drafts: tuple[int, ...] = (), **fields: Any) -> bool:
        return (
            sampler.stage([SamplingRow(RowSampling(sampling, 1, [1], [1], **fields), drafts, 0)], 1, None) is not None
        )

    assert fits() and all(fits(sampling) for sampling in SAMPLINGS.values())
    assert not fits(Sampling(max_tokens=4, temperature=1.0, top_p=0.9)), "the number of ids within top_p is unknown"
    assert not fits(Sampling(max_tokens=4, temperature=1.0, top_k=MAX_TOP_K + 1))
    assert not fits(Sampling(max_tokens=4, temperature=0.0, num_logprobs=0))
    assert not fits(Sampling(max_tokens=4, temperature=0.0, frequency_penalty=0.1))
    assert not fits(Sampling(max_tokens=4, temperature=0.0, logit_bias={1: 1.0}))
    assert not fits(drafts=(5,))
    small = GraphSampler(2, MAX_TOP_K, CPU)
    assert small.stage([SamplingRow(RowSampling(GREEDY, 1, [1], []), (), 0)], 1, None) is None, (
        "a vocabulary smaller than the candidates"
    )


class ForbidSynchronization(TorchDispatchMode):
    """Fails on operations that synchronize with the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in SYNCHRONIZING), func
        return func(*args, **(kwargs or {}))


class StubKernels:
    """Kernels without attention: the reference kernels read the tiles on the host, which synchronizes."""

    def write(self, *args: Any) -> None:
        """Do nothing."""

    def attend(self, query: Any, keys: Any, values: Any, tiles: Any, result: Any, scaling: float) -> None:
        """Return the query."""
        result.copy_(query)


def test_nothing_that_is_captured_synchronizes() -> None:
    """One value copied to the host makes the whole capture fail."""
    model = loaded("qwen3", kernels=False)
    pool = CudaKvPool(pool_shape(model, BLOCK_SIZE), 8, CPU, StubKernels())
    static = StaticDecode(model, pool, (2,))
    sampling = RowSampling(SAMPLINGS["nucleus"], 1, [1], [])
    assert static.stage([Row([5], 3, [0], 1, sampling)]) == 2
    rows = [SamplingRow(sampling, (), 0)]
    variant = static.sampler.stage(rows, 1, masks_for(random.Random(1), rows, 9))
    assert variant == SamplingVariant(truncated=True, masked=True)
    with torch.inference_mode(), ForbidSynchronization():
        decoded = static.compute(2)
        for one in (variant, SamplingVariant(full=True), SamplingVariant(True, True, True)):
            static.sampler.sample(decoded.logits, one)
    with pytest.raises(AssertionError, match="nonzero"), ForbidSynchronization():
        torch.nonzero(decoded.greedy_ids)


def sampled_streams(count: int) -> list[Stream]:
    """Streams of all kinds of sampling, each with its own blocks."""
    samplings = [SAMPLINGS[name] for name in ("nucleus", "full", "greedy", "min_p")]
    return [
        Stream(prompt_of(14 + 3 * i, i), range(10 * i, 10 * i + 10), samplings[i % len(samplings)], seed=i)
        for i in range(count)
    ]


def written_by(runner: Runner, count: int, steps: int) -> list[list[int]]:
    """Ids of such streams; every second step a mask allows the first of them only ids below 1000."""
    streams = sampled_streams(count)
    step(runner, streams)
    words = np.zeros((1, 40), dtype=np.int32)
    words[0, :31] = -1
    for number in range(steps):
        rows = [stream.row() for stream in streams]
        batch = Batch(tuple(rows))
        masks = Masks((0,), words) if number % 2 else None
        for stream, sampled in zip(streams, runner.sample(runner.launch(batch), batch, masks).read(), strict=True):
            stream.num_computed += 1
            stream.written.extend(sampled.token_ids)
        assert masks is None or streams[0].written[-1] < 1000
    return [stream.written for stream in streams]


class CountingStaticDecode(StaticDecode):
    """Counts the steps sampled on static buffers."""

    sampled = 0

    def sample(self, *args: Any) -> torch.Tensor | None:
        """As `StaticDecode.sample`."""
        ids = super().sample(*args)
        self.sampled += ids is not None
        return ids


def test_a_runner_samples_the_same_ids_on_static_buffers() -> None:
    model = loaded("qwen3", kernels=False)
    results = []
    for is_static in (False, True):
        runner = Runner(model, 1, BLOCK_SIZE)
        runner.pool = pool = CudaKvPool(pool_shape(model, BLOCK_SIZE), 40, CPU, reference_kernels)
        runner._decode = decode = CountingStaticDecode(model, pool, (1, 4)) if is_static else None
        results.append(written_by(runner, 4, 10))
        assert decode is None or decode.sampled == 10
    assert results[0] == results[1]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("is_captured", [True, False])
def test_on_the_gpu_nothing_synchronizes_between_launch_and_read(is_captured: bool) -> None:
    """A copy from pageable memory would wait for the whole step and prevent overlap."""
    model = load(tiny_checkpoint("qwen3"), EngineSettings(device="cuda"), lambda fraction: None)
    runner = Runner(model, 160, BLOCK_SIZE)
    if is_captured:
        runner.capture_graphs((16,), samplers=True)
    streams = sampled_streams(16)
    penalized = Sampling(max_tokens=4, temperature=0.7, top_k=9, frequency_penalty=0.5, logit_bias={5: 1.0})
    streams[3].sampling = penalized
    step(runner, streams)
    masks = Masks((0,), np.full((1, 40), -1, dtype=np.int32))
    batch = Batch(tuple(stream.row() for stream in streams))
    overlapped = Batch(tuple(Row((0,), row.start + 1, row.blocks, 1, None) for row in batch.rows[::-1]))
    try:
        for mode in ("default", "error"):  # the first round compiles and allocates pinned memory
            torch.cuda.set_sync_debug_mode(mode)
            pending = runner.sample(runner.launch(batch), batch, masks)
            runner.launch_after(overlapped, pending, range(15, -1, -1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(pending.read()) == 16


@pytest.mark.gpu
def test_on_the_gpu_captured_sampling_equals_the_sampler() -> None:
    """For every variant; masks and settings of one step must not affect the next."""
    model = load(tiny_checkpoint("qwen3"), EngineSettings(device="cuda"), lambda fraction: None)
    results = []
    for is_captured in (False, True):
        runner = Runner(model, 160, BLOCK_SIZE)
        runner.capture_graphs((16,), samplers=True)
        graphs = runner._decode
        assert isinstance(graphs, DecodeGraphs) and not graphs._disabled and len(graphs._samplers) == 7
        if not is_captured:
            graphs._disabled.add("sampling")
        results.append(written_by(runner, 16, 30))
    assert results[0] == results[1]
