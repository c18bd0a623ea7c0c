"""GGUF files load to the same weights as the numbers that were written, and compute the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from server.errors import CannotStart
from server.messages import Sampling
from server.model.loading.gguf import load_gguf
from server.model.loading.gguf_blocks import UNPACKINGS, unpack
from server.model.loading.gguf_weights import GgufWeights
from server.model.loading.loader import load
from server.model.loading.plain import expected_shapes, load_plain, read_plain_config
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.gguf.written import Type, gguf_checkpoint, random_blocks, write_gguf
from tests.model.drive import BLOCK_SIZE, Stream, prompt_of, run
from tests.model.loading.test_plain import PLAIN, logits_of, nothing, torch_only

OTHERS: tuple[Kind, ...] = ("qwen3_moe", "qwen3_5", "qwen3_5_moe")


@pytest.mark.parametrize("name", UNPACKINGS)
def test_blocks_are_multiplied_out_bit_by_bit_as_the_package_does(name: str) -> None:
    """Random bytes: every bit of a code, a scale and a minimum has its place in each type."""
    rows = random_blocks(gguf.GGMLQuantizationType[name], 64, 1536)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    codes = unpack(name, torch.from_numpy(rows))
    assert np.array_equal(codes.multiply_out().numpy(), expected)
    assert codes.codes.shape == expected.shape and int(codes.codes.max()) == (1 << codes.width) - 1


@pytest.mark.parametrize("kind", PLAIN)
def test_a_file_computes_what_a_folder_of_its_numbers_does(kind: Kind) -> None:
    """Types of all kinds in one file. Rows of queries that were left in llama.cpp's order would show here."""
    folder = gguf_checkpoint(kind)
    numbers = load_file(folder / "model.safetensors")
    stored = GgufWeights(folder / "model.gguf", torch.float32)
    assert stored.keys() == numbers.keys() and all(torch.equal(stored[name], numbers[name]) for name in numbers)
    ours = load_gguf(folder / "model.gguf", torch_only("float32"), None, nothing, 0.0)
    theirs = load_plain(folder, torch_only("float32"), None, nothing, 0.0)
    assert ours is not None and theirs is not None
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), atol=1e-4, rtol=1e-4)
    assert ours.weight_bytes < theirs.weight_bytes


@pytest.mark.parametrize("kind", OTHERS)
def test_other_decoders_load_through_transformers(kind: Kind) -> None:
    """Experts are stored stacked, gates apart from ups. Value heads of the delta rule have another order."""
    folder = gguf_checkpoint(kind)
    streams = []
    for path in (folder / "model.gguf", folder):
        loaded = load(path, torch_only("float32"), nothing)
        sampling = Sampling(max_tokens=8, temperature=0.0, num_logprobs=1)
        streams.append(Stream(prompt_of(20), range(4), sampling, slot=0 if loaded.recurrent else None))
        run(Runner(loaded, 8, BLOCK_SIZE, num_slots=1 if loaded.recurrent else 0), streams[-1:])
    ours, theirs = streams
    assert ours.written == theirs.written
    assert [one.logprob for one in ours.logprobs] == pytest.approx([one.logprob for one in theirs.logprobs], abs=1e-4)


def changed_copy(kind: Kind, folder: Path, **fields: Any) -> Path:
    """The checkpoint that tests make, with other fields in its configuration."""
    folder.mkdir()
    for file in tiny_checkpoint(kind).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "config.json").unlink()
    config = json.loads((tiny_checkpoint(kind) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_scaled_positions_load_through_transformers(kind: Kind, tmp_path: Path) -> None:
    """They are not computed by the loader of plain decoders. Weights are read one by one there too."""
    rope = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
    folder = changed_copy(kind, tmp_path / "m", rope_parameters=rope)
    write_gguf(folder, tmp_path / "m.gguf", [Type.F32], tokenizer=False)
    ours, theirs = (load(path, torch_only("float32"), nothing) for path in (tmp_path / "m.gguf", folder))
    assert torch.equal(logits_of(ours), logits_of(theirs))


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "qwen3_5"])
def test_transformers_reads_the_same_weights(kind: Kind, tmp_path: Path) -> None:
    """Its own reading of such files, which this project's does not go through.

    The configuration is given: its own reading leaves out the size of Qwen3's heads and experts.
    """
    numbers = write_gguf(tiny_checkpoint(kind), tmp_path / "m.gguf", [Type.Q8_0, Type.Q4_1], tokenizer=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="m.gguf",
        config=transformers.AutoConfig.from_pretrained(tiny_checkpoint(kind)),
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    ours = GgufWeights(tmp_path / "m.gguf", torch.float32)
    state = theirs.state_dict()
    assert {name for name in state if "lm_head" not in name or "lm_head.weight" in numbers} == set(ours)
    for name in ours:
        assert torch.equal(ours[name], state[name]), name


def test_matrices_of_the_type_that_is_computed_in_are_not_copied(tmp_path: Path) -> None:
    """As safetensors files, they are mapped and read when they are used."""
    write_gguf(tiny_checkpoint("qwen2"), tmp_path / "m.gguf", [Type.BF16], tokenizer=False)
    weights = GgufWeights(tmp_path / "m.gguf", torch.bfloat16)
    first, second = (weights["model.layers.0.mlp.up_proj.weight"] for _ in range(2))
    assert first.data_ptr() == second.data_ptr()


def test_a_split_file_loads(tmp_path: Path) -> None:
    source = tiny_checkpoint("qwen2")
    write_gguf(source, tmp_path / "m.gguf", [Type.Q8_0], tokenizer=False, split_max_tensors=10)
    write_gguf(source, tmp_path / "whole.gguf", [Type.Q8_0], tokenizer=False)
    first = next(tmp_path.glob("m-00001-of-*.gguf"))
    streams = []
    for path in (first, tmp_path / "whole.gguf"):
        streams.append(Stream(prompt_of(30), range(8)))
        run(Runner(load(path, EngineSettings(device="cpu"), nothing), 8, BLOCK_SIZE), streams[-1:])
    assert streams[0].written == streams[1].written


def test_weights_that_do_not_fit_the_configuration_are_named(tmp_path: Path) -> None:
    """One that is missing was a KeyError, one of another size a fault of torch."""
    folder = changed_copy("qwen3", tmp_path / "m", num_hidden_layers=4)
    write_gguf(folder, tmp_path / "more.gguf", [Type.Q8_0], tokenizer=False)
    with pytest.raises(CannotStart, match=r"more\.gguf holds no weights for model\.layers\.3"):
        load(tmp_path / "more.gguf", torch_only("auto"), nothing)
    config = json.loads((tiny_checkpoint("qwen3") / "config.json").read_text())
    plain = read_plain_config(config)
    assert plain is not None
    weights = GgufWeights(gguf_checkpoint("qwen3") / "model.gguf", torch.bfloat16)
    shapes = expected_shapes(plain)
    weights.check(shapes)
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(CannotStart, match=rf"{name} of shape \[96, 64\]; its configuration says \[96, 65\]"):
        weights.check(shapes | {name: (96, 65)})
    with pytest.raises(CannotStart, match=f"{name}, which a model of this configuration has not"):
        weights.check({other: shape for other, shape in shapes.items() if other != name})


def test_a_file_starts_without_importing_transformers_or_the_package() -> None:
    code = (
        "import sys; from pathlib import Path; import server.engine.assemble;"
        "from server.model.loading.loader import load;"
        "from server.settings import EngineSettings;"
        "load(Path(sys.argv[1]), EngineSettings(device='cpu'), lambda fraction: None);"
        "print('transformers' in sys.modules, 'gguf' in sys.modules)"
    )
    path = gguf_checkpoint("qwen3") / "model.gguf"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_progress_ends_at_one_and_never_decreases() -> None:
    fractions: list[float] = []
    load(gguf_checkpoint("qwen3") / "model.gguf", torch_only("auto"), fractions.append)
    assert len(fractions) > 20 and fractions == sorted(fractions) and fractions[-1] == 1.0
