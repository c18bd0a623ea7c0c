"""Decode steps on static buffers: compared with the general path on the CPU, captured and replayed on a card."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server.messages import Sampling
from server.model.adapters.weights import read_adapter
from server.model.attention.gpu import CudaKvPool, Kernels
from server.model.batch import Batch, Row, RowSampling
from server.model.graphs.decode_graphs import (
    MAX_TABLE_ENTRIES,
    DecodeGraphs,
    StaticDecode,
    is_pure_decode,
    padded_sizes,
)
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.runner import Runner, pool_shape
from server.model.sampling.sampler import PendingSamples, SamplingRow, greedy_ids, is_greedy, sample_ids
from server.settings import EngineSettings
from tests.adapter_folders import write_adapter
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.attention import reference_kernels
from tests.model.drive import BLOCK_SIZE, GREEDY, Stream, generate, loaded, prompt_of, run, step

CPU = torch.device("cpu")


def prefilled(model: LoadedModel, kernels: Kernels, count: int) -> tuple[Runner, CudaKvPool, list[Stream]]:
    """Streams of different lengths after prefill, in a pool of the GPU layout on the CPU."""
    runner = Runner(model, 1, BLOCK_SIZE)
    runner.pool = pool = CudaKvPool(pool_shape(model, BLOCK_SIZE), 10 * count, CPU, kernels)
    blocks = random.Random(count).sample(range(10 * count), 10 * count)
    streams = [Stream(prompt_of(14 + 9 * i, i), blocks[10 * i : 10 * i + 10], GREEDY) for i in range(count)]
    step(runner, streams)
    return runner, pool, streams


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_padded_step_on_static_buffers_equals_the_general_path(kind: Kind, count: int) -> None:
    """Padding rows must neither be attended to by others nor write to blocks in use."""
    model = loaded(kind, kernels=False)
    runner, pool, streams = prefilled(model, reference_kernels, count)
    static = StaticDecode(model, pool, (1, 4, 8))
    for _ in range(3):  # buffers are reused with other lengths and one more block
        rows = [stream.row() for stream in streams]
        with torch.inference_mode():
            before = [part.clone() for part in (*pool.keys, *pool.values)]
            decoded = static.launch(rows)
            written = [part.clone() for part in (*pool.keys, *pool.values)]
            for part, old in zip((*pool.keys, *pool.values), before, strict=True):
                part.copy_(old)
        ticket = runner.launch(Batch(tuple(rows)))
        assert decoded is not None and ticket.logits is not None
        assert decoded.logits.shape[0] == {1: 1, 3: 4, 5: 8}[count]
        assert torch.allclose(decoded.logits[:count], ticket.logits, atol=1e-4)
        assert torch.equal(decoded.greedy_ids[:count], ticket.logits.argmax(-1))
        for part, other in zip(written, (*pool.keys, *pool.values), strict=True):
            assert torch.allclose(part[: pool.num_blocks], other[: pool.num_blocks], atol=1e-4)
        for stream, row, result in zip(
            streams, rows, runner.sample(ticket, Batch(tuple(rows)), None).read(), strict=True
        ):
            stream.num_computed += len(row.token_ids)
            stream.written.extend(result.token_ids)


def test_a_runner_decodes_on_static_buffers_and_computes_other_steps_as_before() -> None:
    """Prompts and log probabilities are mixed with decode steps on static buffers."""
    model = loaded("qwen3", kernels=False)
    runner = Runner(model, 1, BLOCK_SIZE)
    runner.pool = pool = CudaKvPool(pool_shape(model, BLOCK_SIZE), 64, CPU, reference_kernels)
    runner._decode = decode = CountingDecode(StaticDecode(model, pool, (1, 2, 4)))
    samplings = [Sampling(max_tokens=8, temperature=0.0), Sampling(max_tokens=12, temperature=0.0, num_logprobs=2)]
    streams = [Stream(prompt_of(20 + 31 * i, i), range(12 * i, 12 * i + 12), samplings[i], chunk=40) for i in range(2)]
    step(runner, streams[:1])
    run(runner, streams)
    assert decode.steps > 4
    for stream in streams:
        assert stream.written == generate("qwen3", stream.prompt, stream.sampling.max_tokens)
    assert len(streams[1].logprobs) == 12


def test_rows_with_an_adapter_are_not_decoded_on_static_buffers(tmp_path: Path) -> None:
    """These know the model alone: such a reply would go on without its adapter behind the prompt."""
    model = loaded("qwen3", kernels=False)
    weights = read_adapter(write_adapter(tmp_path, tiny_checkpoint("qwen3")), model.targets, model.dtype)
    written = []
    for sizes in ((), (1, 2)):
        runner = Runner(model, 1, BLOCK_SIZE)
        runner.pool = pool = CudaKvPool(pool_shape(model, BLOCK_SIZE), 16, CPU, reference_kernels)
        runner._decode = StaticDecode(model, pool, sizes) if sizes else None
        runner.add_adapter(1, model.backbone.adapt(weights))
        sampling = Sampling(max_tokens=6, temperature=0.0)
        streams = [Stream(prompt_of(20), range(8 * i, 8 * i + 8), sampling, adapter=i) for i in range(2)]
        run(runner, streams)
        written.append([stream.written for stream in streams])
    assert written[0] == written[1] and written[0][0] != written[0][1]


class CountingDecode:
    """A `runner.DecodePath` that counts its steps."""

    def __init__(self, static: StaticDecode) -> None:
        self._static = static
        self.steps = 0

    def launch(self, rows, ids=None):  # type: ignore[no-untyped-def]
        """As `runner.Decode`."""
        self.steps += 1
        return self._static.launch(rows, ids)

    def sample(self, decoded, rows, num_lines, masks):  # type: ignore[no-untyped-def]
        """As `runner.Decode`."""
        return self._static.sample(decoded, rows, num_lines, masks)


@pytest.mark.parametrize("on_static_buffers", [True, False])
def test_a_step_starts_from_sampled_ids_that_were_not_read_back(on_static_buffers: bool) -> None:
    """For some of the rows, in another order; greedy and sampled."""
    model = loaded("qwen3", kernels=False)
    runner, pool, streams = prefilled(model, reference_kernels, 4)
    if on_static_buffers:
        runner._decode = StaticDecode(model, pool, (1, 2, 4))
    sampled = Sampling(max_tokens=8, temperature=0.9, top_k=20)
    samplings = [RowSampling(sampled if line == 1 else GREEDY, line, [1], []) for line in range(4)]
    now = Batch(
        tuple(replace(stream.row(), sampling=sampling) for stream, sampling in zip(streams, samplings, strict=True))
    )
    pending = runner.sample(runner.launch(now), now, None)
    lines = (3, 1, 2)
    following = [Row((0,), now.rows[line].start + 1, now.rows[line].blocks, 1, None) for line in lines]
    ticket = runner.launch_after(Batch(tuple(following)), pending, lines)
    ids = [one.token_ids[0] for one in pending.read()]
    known = [replace(row, token_ids=(ids[line],)) for row, line in zip(following, lines, strict=True)]
    assert ticket.logits is not None
    expected = runner.launch(Batch(tuple(known))).logits
    assert expected is not None and torch.equal(ticket.logits, expected)
    expected = expected.clone()
    # One row has ended meanwhile: the others are sampled all the same.
    reconciled = Batch((replace(known[0], sampling=samplings[3]), known[1], replace(known[2], sampling=samplings[2])))
    results = runner.sample(ticket, reconciled, None).read()
    assert [one.token_ids[0] for one in results] == expected.argmax(-1)[[0, 2]].tolist()


def test_a_fault_that_was_not_read_back_does_not_break_the_next_step() -> None:
    """A negative mark stands in place of an id, and is no valid embedding index."""
    runner, _, streams = prefilled(loaded("qwen3", kernels=False), reference_kernels, 2)
    rows = [stream.row() for stream in streams]
    broken = torch.stack([torch.full((1, 300), torch.nan)[0], torch.arange(300.0)])
    pending = sample_ids(
        broken, [SamplingRow(row.sampling, (), line) for line, row in enumerate(rows) if row.sampling], None
    )
    following = Batch(tuple(replace(row, token_ids=(0,), start=row.start + 1, sampling=None) for row in rows))
    ticket = runner.launch_after(following, pending, (0, 1))
    assert ticket.logits is not None and torch.isfinite(ticket.logits).all()
    assert [one.fault is not None for one in pending.read()] == [True, False]


def chain(runner: Runner, streams: list[Stream], steps: int, *, overlap: bool) -> list[list[int]]:
    """Greedy ids of each stream; with `overlap` a step is read after the next one is launched."""
    written: list[list[int]] = [[] for _ in streams]
    batch = Batch(tuple(stream.row() for stream in streams))
    ticket = runner.launch(batch)
    for _ in range(steps):
        pending = runner.sample(ticket, batch, None)
        following = Batch(tuple(replace(row, token_ids=(0,), start=row.start + 1) for row in batch.rows))
        if overlap:
            ticket = runner.launch_after(following, pending, range(len(streams)))
        for ids, one in zip(written, pending.read(), strict=True):
            ids.extend(one.token_ids)
        if not overlap:
            known = zip(following.rows, written, strict=True)
            ticket = runner.launch(Batch(tuple(replace(row, token_ids=ids[-1:]) for row, ids in known)))
        batch = following
    return written


def test_overlapped_steps_give_the_ids_of_sequential_steps() -> None:
    model = loaded("qwen3", kernels=False)
    results = []
    for overlap in (False, True):
        runner, pool, streams = prefilled(model, reference_kernels, 3)
        runner._decode = StaticDecode(model, pool, (4,))
        results.append(chain(runner, streams, 6, overlap=overlap))
    assert results[0] == results[1]


def test_only_pure_decode_steps_that_fit_the_buffers_are_accepted() -> None:
    sampling = RowSampling(GREEDY, 0, [1], [1])
    decode = Row([5], 3, [0], 1, sampling)
    assert is_pure_decode([decode, decode])
    assert not is_pure_decode([decode, Row([5, 6], 3, [0], 2, sampling)]), "drafts"
    assert not is_pure_decode([decode, Row([5], 3, [0], 0, None)]), "the middle of a prompt"
    model = loaded("qwen3", kernels=False)
    pool = CudaKvPool(pool_shape(model, BLOCK_SIZE), 4, CPU, reference_kernels)
    static = StaticDecode(model, pool, (1, 2))
    assert static.stage([decode] * 3) is None, "more rows than captured"
    assert static.stage([Row([5], 3, [0] * MAX_TABLE_ENTRIES, 1, sampling)]) is None, (
        "block tables longer than the buffer"
    )
    assert static.stage([decode]) == 1


@pytest.mark.parametrize("most", [1, 2, 5, 8, 64, 100, 256])
def test_padded_sizes_reach_the_maximum_and_waste_little(most: int) -> None:
    sizes = padded_sizes(most)
    assert sizes[-1] == most and list(sizes) == sorted(set(sizes))
    for rows in range(1, most + 1):
        padded = next(size for size in sizes if size >= rows)
        assert padded <= max(2 * rows, rows + 7), "few rows get little padding"
        assert padded - rows < 32


def test_greedy_ids_on_the_device_equal_those_of_the_sampler() -> None:
    """Ties give the lowest id; NaN and infinity give a fault."""
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(2)).bfloat16()
    logits[1, [7, 500]] = 50.0
    logits[2, 3] = torch.nan
    logits[3, 4] = torch.inf
    rows = [SamplingRow(RowSampling(GREEDY, 0, [1], [1]), (), line) for line in range(5)]
    assert PendingSamples(greedy_ids(logits), rows).read() == sample_ids(logits.clone(), rows, None).read()


def test_rows_with_adjusted_logits_are_not_greedy() -> None:
    assert is_greedy(RowSampling(GREEDY, 0, [1], [1]))
    for sampling in (
        Sampling(max_tokens=4, temperature=0.5),
        Sampling(max_tokens=4, temperature=0.0, num_logprobs=0),
        Sampling(max_tokens=4, temperature=0.0, frequency_penalty=1.0),
        Sampling(max_tokens=4, temperature=0.0, logit_bias={3: 1.0}),
    ):
        assert not is_greedy(RowSampling(sampling, 0, [1], [1]))
    assert not is_greedy(RowSampling(GREEDY, 0, [1], [1], banned_ids=(7,)))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_on_the_gpu_replays_equal_generate(kind: Kind) -> None:
    model = load(tiny_checkpoint(kind), EngineSettings(device="cuda"), lambda fraction: None)
    runner = Runner(model, 64, BLOCK_SIZE)
    runner.capture_graphs((1, 2, 4))
    graphs = runner._decode
    assert isinstance(graphs, DecodeGraphs) and sorted(graphs._steps) == [1, 2, 4]
    lengths = (6, 9, 14)  # streams end one after the other: replays of 4, 2 and 1 rows
    streams = [
        Stream(prompt_of(30 + 17 * i, i), range(8 * i, 8 * i + 8), Sampling(max_tokens=count, temperature=0.0))
        for i, count in enumerate(lengths)
    ]
    run(runner, streams)
    for stream, count in zip(streams, lengths, strict=True):
        assert stream.written == generate(kind, stream.prompt, count)


@pytest.mark.gpu
def test_on_the_gpu_overlapped_steps_give_the_ids_of_sequential_steps() -> None:
    """A copy or sampling overtaken by the next replay would change the ids."""
    model = load(tiny_checkpoint("qwen3"), EngineSettings(device="cuda"), lambda fraction: None)
    runner = Runner(model, 10 * 64, BLOCK_SIZE)
    runner.capture_graphs((64,))
    results = []
    for overlap in (False, True):
        streams = [Stream(prompt_of(14 + i, i), range(10 * i, 10 * i + 10), GREEDY) for i in range(64)]
        step(runner, streams)
        results.append(chain(runner, streams, 32, overlap=overlap))
    assert results[0] == results[1]


@pytest.mark.gpu
def test_on_the_gpu_graphs_are_captured_again_when_the_pool_has_moved() -> None:
    """A replay with addresses of freed memory would read foreign data."""
    model = load(tiny_checkpoint("qwen3"), EngineSettings(device="cuda"), lambda fraction: None)
    runner = Runner(model, 64, BLOCK_SIZE)
    runner.capture_graphs((1, 2))
    stream = Stream(prompt_of(30), range(8), Sampling(max_tokens=20, temperature=0.0))
    for _ in range(5):
        step(runner, [stream])
    runner.release(16)
    for _ in range(5):
        step(runner, [stream])
    assert runner.restore(64) == 64
    run(runner, [stream])
    assert stream.written == generate("qwen3", stream.prompt, 20)


@pytest.mark.gpu
def test_on_the_gpu_a_model_that_cannot_be_captured_runs_without_graphs() -> None:
    """Routers that synchronize make the capture fail; the engine must continue."""
    model = load(tiny_checkpoint("qwen3_moe"), EngineSettings(device="cuda"), lambda fraction: None)
    runner = Runner(model, 64, BLOCK_SIZE)
    runner.capture_graphs((1, 2))
    stream = Stream(prompt_of(30), range(8), Sampling(max_tokens=20, temperature=0.0))
    run(runner, [stream])
    assert stream.written == generate("qwen3_moe", stream.prompt, 20)
