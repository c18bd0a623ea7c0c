"""Kernels of sets that this CPU may lack, on emulated instructions: no machine of these tests has them all."""

import platform
import re
import shutil
import subprocess
from ctypes import CDLL
from itertools import pairwise

import pytest
import torch

from server.model.batch import Row
from server.model.cpu.library import load_library
from server.model.cpu.native import NativeBackbone
from server.model.cpu.self_check import find_difference
from server.model.loading import loader
from server.model.runner import Runner
from tests.live import ROOT
from tests.model.cpu.emulate import emulated_library
from tests.model.cpu.test_native import IDS, SAMPLING, logits, mixed, model, poisoned, row

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="sets of x86-64")
SETS = [
    "amx",
    pytest.param("avx512_bf16", marks=pytest.mark.long),
    pytest.param("avx512", marks=pytest.mark.long),
]


@pytest.fixture(scope="module", params=SETS)
def emulated(request: pytest.FixtureRequest) -> CDLL:
    return load_library(emulated_library(request.param))


def test_every_form_agrees_with_float64(emulated: CDLL) -> None:
    """Products in tiles, too: whole tiles and parts of them, of outputs and of tokens."""
    assert find_difference(emulated) is None


@pytest.mark.parametrize("block_size", [16, 32], ids=["blocks of 16", "blocks of 32, in tiles"])
def test_logits_do_not_depend_on_the_batch_or_on_chunks(
    emulated: CDLL, monkeypatch: pytest.MonkeyPatch, block_size: int
) -> None:
    """Inputs are laid out sixteen tokens at a time: a token's place in them must not change its sums."""
    monkeypatch.setattr(loader, "choose_library", lambda requested: emulated)
    loaded = model("qwen3", "bfloat16")
    assert isinstance(loaded.backbone, NativeBackbone)
    blocks = range(6)
    whole = logits(poisoned(loaded, block_size, 12), row(IDS[:83], 0, blocks))
    assert whole.isfinite().all()
    chunked = poisoned(loaded, block_size, 12)
    parts = [logits(chunked, row(IDS[low:high], low, blocks)) for low, high in pairwise((0, 1, 17, 33, 82, 83))]
    assert torch.equal(torch.cat(parts), whole)
    shared = poisoned(loaded, block_size, 12)
    assert torch.equal(logits(shared, row(IDS[:83], 0, blocks), row(IDS[90:101], 0, range(6, 9)))[:83], whole)


def test_logits_of_experts_and_states_do_not_depend_on_the_batch(
    emulated: CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of an expert come from several sequences, in tiles of their own."""
    monkeypatch.setattr(loader, "choose_library", lambda requested: emulated)
    loaded = model("qwen3_next", "bfloat16")
    assert isinstance(loaded.backbone, NativeBackbone)
    runner = Runner(loaded, 12, 16, num_slots=2)
    own = Row(IDS[:40], 0, range(4), 40, SAMPLING, 0)
    alone = logits(runner, own)
    both = logits(runner, own, Row(IDS[50:73], 0, range(4, 8), 23, SAMPLING, 1))
    assert alone.isfinite().all() and torch.equal(both[:40], alone)


def test_logits_of_a_whole_model_equal_those_of_torch(emulated: CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = mixed(model("qwen3", "float32"), 16)
    monkeypatch.setattr(loader, "choose_library", lambda requested: emulated)
    torch.testing.assert_close(mixed(model("qwen3", "float32"), 16), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("isa", "instructions"), [("amx", r"\b(tdpbf16ps|tileloadd|ldtilecfg)\b"), ("avx512_bf16", r"\bvdpbf16ps\b")]
)
def test_the_compiler_emits_the_instructions_of_the_set(isa: str, instructions: str) -> None:
    """A pragma that the compiler ignored would leave the slow code of another set."""
    path = ROOT / f"server/model/cpu/_{isa}.abi3.so"
    if shutil.which("g++") is None and not path.exists():
        pytest.skip("kernels are compiled where there is g++")
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    found = set(re.findall(instructions, listing.stdout))
    assert len(found) == instructions.count("|") + 1
