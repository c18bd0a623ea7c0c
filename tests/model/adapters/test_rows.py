"""Rows of several adapters and of none in one batch: each writes what it writes alone, bit by bit."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from server.messages import Sampling
from server.model.adapters.weights import read_adapter
from server.model.batch import Batch, Row, RowSampling
from server.model.cpu.library import available_isas
from server.model.layers.decoder import CHUNK_TOKENS
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.adapter_folders import ATTENTION_AND_MLP, LINEAR_ATTENTION, write_adapter
from tests.checkpoints import Kind
from tests.model.cpu.test_native import checkpoint, logits
from tests.model.drive import BLOCK_SIZE, Stream, prompt_of, run

SAMPLING = Sampling(max_tokens=6, temperature=0.0, num_logprobs=3)
BLOCKS_OF_ONE = 6
PROMPTS = [20, 20, 17, 3, 33, 5, 47, 1]  # tokens of eight rows


def nothing(fraction: float) -> None:
    """Progress that nobody sees."""


def runner_with(tmp_path: Path, kind: Kind, settings: EngineSettings) -> Runner:
    """A runner with the adapters 1 to 3, of different ranks, parts and sizes."""
    folder_of_model = checkpoint(kind)
    loaded = load(folder_of_model, settings, nothing)
    runner = Runner(loaded, 8 * BLOCKS_OF_ONE, BLOCK_SIZE, 8 if loaded.recurrent else 0)
    every = ATTENTION_AND_MLP if loaded.recurrent is None else (*ATTENTION_AND_MLP, *LINEAR_ATTENTION)
    for handle, (rank, modules) in enumerate([(8, every), (3, every[:2]), (17, every)], 1):
        folder = write_adapter(tmp_path / str(handle), folder_of_model, seed=handle, rank=rank, modules=modules)
        weights = read_adapter(folder, loaded.targets, loaded.dtype)
        runner.add_adapter(handle, loaded.backbone.adapt(weights))
    return runner


def streams(chunk: int = 1 << 20, *, has_slots: bool) -> list[Stream]:
    """Eight sequences of different lengths: two of the base model, two of each adapter."""
    return [
        Stream(
            [token % 1000 for token in prompt_of(length, seed=index // 4)],
            range(index * BLOCKS_OF_ONE, (index + 1) * BLOCKS_OF_ONE),
            SAMPLING,
            slot=index if has_slots else None,
            adapter=index % 4,
            chunk=chunk,
        )
        for index, length in enumerate((20, 20, 20, 20, 33, 5, 47, 1))
    ]


def rows(lengths: Sequence[int], starts: Sequence[int], *, has_slots: bool) -> list[Row]:
    """Eight rows with logits for each token: two of the base model, two of each adapter."""
    return [
        Row(
            [token % 1000 for token in prompt_of(90, seed=index)][start : start + length],
            start,
            range(index * BLOCKS_OF_ONE, (index + 1) * BLOCKS_OF_ONE),
            length,
            RowSampling(SAMPLING, 0, [], []),
            index if has_slots else None,
            adapter=index % 4,
        )
        for index, (length, start) in enumerate(zip(lengths, starts, strict=True))
    ]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3_5"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_the_other_rows_on_chunks_or_on_threads(
    tmp_path: Path, kind: Kind, dtype: Any
) -> None:
    """Sums over a batch's rows of one adapter, or over parts of a prompt, would round otherwise in another batch."""
    if not available_isas():
        pytest.skip("no kernels are compiled for this CPU")
    runner = runner_with(tmp_path, kind, EngineSettings(device="cpu", dtype=dtype))
    has_slots = runner.states is not None
    prompts = rows(PROMPTS, [0] * 8, has_slots=has_slots)
    following = rows([1] * 8, PROMPTS, has_slots=has_slots)
    together = [torch.split(logits(runner, *prompts), PROMPTS), torch.split(logits(runner, *following), [1] * 8)]
    same_prompt = [dataclasses.replace(prompts[0], adapter=adapter) for adapter in range(4)]
    found = [logits(runner, one) for one in same_prompt]
    assert all(not torch.equal(found[i], found[j]) for i in range(4) for j in range(i)), "adapters change the logits"
    threads = torch.get_num_threads()
    for index in range(8):
        alone = [logits(runner, prompts[index]), logits(runner, following[index])]
        torch.set_num_threads(1)
        try:
            parts = [logits(runner, part) for part in (*_chunks(prompts[index], 7), following[index])]
        finally:
            torch.set_num_threads(threads)
        for whole in (alone, [torch.cat(parts[:-1]), parts[-1]]):
            assert torch.equal(whole[0], together[0][index]) and torch.equal(whole[1], together[1][index]), index


def _chunks(row: Row, size: int) -> list[Row]:
    """The row in several steps."""
    starts = range(0, len(row.token_ids), size)
    parts = [row.token_ids[start : start + size] for start in starts]
    return [
        dataclasses.replace(row, token_ids=ids, start=start, num_logits=len(ids))
        for start, ids in zip(starts, parts, strict=True)
    ]


@pytest.mark.parametrize(
    ("kind", "lengths"), [("qwen3", [8, 90, 90, 90, 90, 80, 80, 9]), ("qwen3_5", [2, 5, 5, 2, 5, 2, 3, 1])]
)
def test_torch_computes_the_parts_of_a_step_with_the_adapters_of_their_tokens(
    tmp_path: Path, kind: Kind, lengths: list[int]
) -> None:
    """More tokens than the MLP takes at a time, and rows that linear attention computes group by group."""
    assert sum(lengths) > CHUNK_TOKENS or kind != "qwen3"
    runner = runner_with(tmp_path, kind, EngineSettings(device="cpu", dtype="float32", cpu_isa="torch"))
    own = rows(lengths, [0] * 8, has_slots=runner.states is not None)
    together = torch.split(logits(runner, *own), lengths)
    for index in (0, 3, 5, 7):
        torch.testing.assert_close(together[index], logits(runner, own[index]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("isa", available_isas())
def test_every_instruction_set_adds_the_same_shares(tmp_path: Path, isa: Any) -> None:
    """In float32 the sets differ in the order of sums alone; the torch path has none of their code."""
    found = []
    for name in (isa, "torch"):
        settings = EngineSettings(device="cpu", dtype="float32", cpu_isa=name)
        own = streams(has_slots=False)
        run(runner_with(tmp_path, "qwen3", settings), own)
        found.append(own)
    for ours, theirs in zip(*found, strict=True):
        assert ours.written == theirs.written
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_quantized_models_take_adapters_beside(tmp_path: Path) -> None:
    """Products of few bits have loops of their own, which must add the shares as well."""
    runner = runner_with(tmp_path, "qwen3", EngineSettings(device="cpu", dtype="float32", quantize="int8"))
    together, base = streams(has_slots=False), streams(has_slots=False)[:1]
    run(runner, together)
    run(runner, base)
    assert base[0].written == together[0].written
    assert len({tuple(stream.written) for stream in together[:4]}) == 4


def test_drafts_of_a_row_with_an_adapter_are_verified_by_it(tmp_path: Path) -> None:
    """Drafts are copied from the sequence's own text: what the adapter would not write is rejected."""
    runner = runner_with(tmp_path, "qwen3", EngineSettings(device="cpu", dtype="float32"))
    plain, base = (dataclasses.replace(streams(has_slots=False)[index]) for index in (1, 0))
    run(runner, [plain])
    run(runner, [base])
    for drafts in (plain.written, base.written):
        drafted = streams(has_slots=False)[1]
        drafted.drafter = lambda written, drafts=drafts: drafts[len(written) : len(written) + 3]
        run(runner, [drafted])
        assert drafted.written == plain.written


def test_a_dropped_adapter_is_gone(tmp_path: Path) -> None:
    runner = runner_with(tmp_path, "qwen3", EngineSettings(device="cpu", dtype="float32"))
    runner.drop_adapter(2)
    row = Row([1], 0, [0], 1, RowSampling(SAMPLING, 0, [1], []), adapter=2)
    with pytest.raises(KeyError):
        runner.launch(Batch((row,)))
