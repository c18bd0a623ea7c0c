"""Codes of GGUF files on the kernels: as they are stored, for every type, in files of several types."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from server.config_json import kept_bytes, kept_codes
from server.errors import CannotStart
from server.gguf.header import TYPES, GgufTensor
from server.gguf.weights import StoredWeight
from server.memory.adapters import merged_parts
from server.memory.headers import quantizable_bits, read_headers, weight_bytes
from server.model.cpu.library import open_library
from server.model.cpu.native import NativeBackbone
from server.model.cpu.quantized import look_up, project
from server.model.cpu.quantized_check import ROUNDED
from server.model.loading.gguf_blocks import UNPACKINGS, unpack
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.profile import AllocationMeter
from server.model.quantization.packed_weight import PackedWeight
from server.settings import EngineSettings
from tests.adapter_folders import write_adapter
from tests.checkpoints import Kind
from tests.gguf.written import Type, gguf_checkpoint, random_blocks, write_gguf
from tests.model.cpu.isas import TESTED_ISAS
from tests.model.cpu.test_native import IDS, logits, poisoned, row
from tests.model.loading.test_plain import PLAIN, nothing

COUNTS = (1, 2, 5, 8, 9, 40)  # tokens: codes read directly, and unpacked before
HIDDEN, INNER = 256, 512


@pytest.fixture(params=TESTED_ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """The best instruction set of this CPU; with `--long` each."""
    return str(request.param)


def random_weight(name: str, rows: int, columns: int) -> tuple[PackedWeight, torch.Tensor]:
    """Random blocks of a type as the kernels hold them, and the numbers that the `gguf` package makes of them."""
    blocks = random_blocks(gguf.GGMLQuantizationType[name], rows, columns, scale=0.01)
    return unpack(name, torch.from_numpy(blocks)).pack(None), torch.from_numpy(
        gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    )


@pytest.mark.parametrize(("name", "is_kept"), [("gate", False), ("gate_proj", True), ("shared_expert.gate_proj", True)])
def test_a_router_is_multiplied_out_and_gates_of_its_name_are_kept(name: str, is_kept: bool) -> None:
    """Which experts a token gets is decided by a router's numbers, which are no product of a kernel for codes."""
    block = next(block for block in TYPES.values() if block.name == "Q8_0")
    names = [name] if name == "gate" else [name, name.replace("gate", "up")]
    tensors = {one: GgufTensor(one, block, (64, 256), Path(), 0, 0) for one in names}
    weights = [StoredWeight(f"model.layers.0.mlp.{one}.weight", (tensor,)) for one, tensor in tensors.items()]
    assert len(kept_codes(weights)) == (len(weights) if is_kept else 0)


@pytest.mark.parametrize("name", UNPACKINGS)
def test_every_number_is_kept_bit_by_bit(name: str) -> None:
    """A scale rounded to another type, or a group of another size, would show in the last bit."""
    packed, expected = random_weight(name, 39, 768)
    assert torch.equal(packed.unpack(), expected)
    block = next(block for block in TYPES.values() if block.name == name)
    assert packed.num_bytes == kept_bytes(block, (39, 768))
    halves = [
        unpack(name, torch.from_numpy(random_blocks(gguf.GGMLQuantizationType[name], 39, 768, 0.01))[own])
        for own in (slice(32), slice(32, 39))
    ]
    joined = PackedWeight.join((half.pack(None) for half in halves), 39)
    assert torch.equal(joined.unpack(), expected)


@pytest.mark.parametrize("name", UNPACKINGS)
def test_products_are_those_of_the_package(isa: str, name: str) -> None:
    """Of every type, close to float64 with the package's numbers, and of equal bits alone and in a crowd."""
    library = open_library(isa)
    assert library is not None
    packed, numbers = random_weight(name, 75, 768)
    torch.manual_seed(0)
    hidden = torch.randn(COUNTS[-1], 768)
    found, weight = project(library, packed, hidden), numbers.double()
    magnitude = hidden.double().abs() @ weight.abs().T
    assert bool(((found - hidden.double() @ weight.T).abs() <= ROUNDED * magnitude).all())
    assert all(torch.equal(project(library, packed, hidden[:count]), found[:count]) for count in COUNTS)
    ids = torch.tensor([74, 0, 17])
    assert torch.equal(look_up(library, packed, ids), numbers[ids])


def mixed_type(name: str) -> Type:
    """As llama.cpp's Q4_K_M: half of the values and of the down projections, and the output matrix, are of six bits."""
    is_wide = ".0." in name and ("v_proj" in name or "down_proj" in name)
    return Type.Q6_K if is_wide or "lm_head" in name else Type.Q4_K


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.gguf of K types, and the checkpoint of the same numbers."""
    folder = tmp_path_factory.mktemp("mixed")
    sizes: Any = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2, "vocab_size": 1003}
    heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**sizes, **heads, max_position_embeddings=512)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    numbers = write_gguf(folder, folder / "model.gguf", mixed_type, tokenizer=False)
    save_file(numbers, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def loaded_by(isa: str, path: Path, dtype: str, quantize: str = "none") -> LoadedModel:
    settings = EngineSettings(device="cpu", dtype=dtype, cpu_isa=isa, quantize=quantize)  # type: ignore[arg-type]
    return load(path, settings, nothing)


def test_a_mixed_file_computes_what_its_numbers_do(isa: str, mixed: Path) -> None:
    """The rows of one layer have other types than those of the next."""
    ours, theirs = (loaded_by(isa, path, "float32") for path in (mixed / "model.gguf", mixed))
    assert isinstance(ours.backbone, NativeBackbone) and ours.weight_bytes < 0.25 * theirs.weight_bytes
    found, expected = (logits(poisoned(one, 16, 16), row(IDS[:77], 0, range(8, 16))) for one in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)


def test_a_mixed_file_computes_equal_bits_alone_and_in_a_crowd(isa: str, mixed: Path) -> None:
    loaded, blocks = loaded_by(isa, mixed / "model.gguf", "bfloat16"), range(10)
    whole = logits(poisoned(loaded, 16, 60), row(IDS[:150], 0, blocks))
    assert whole.isfinite().all()
    runner = poisoned(loaded, 16, 60)
    parts = [logits(runner, row(IDS[low:high], low, blocks)) for low, high in ((0, 1), (1, 41), (41, 149), (149, 150))]
    assert torch.equal(torch.cat(parts), whole)
    mates = [row(IDS[at : at + 20], 0, range(10 * at, 10 * at + 2)) for at in range(1, 6)]
    assert torch.equal(logits(poisoned(loaded, 16, 60), row(IDS[:150], 0, blocks), *mates)[:150], whole)


@pytest.mark.parametrize("kind", PLAIN)
def test_files_of_many_types_run_where_their_numbers_do(isa: str, kind: Kind) -> None:
    """A gate of few bits beside a plain up would leave the whole decoder to torch: both are multiplied out."""
    folder = gguf_checkpoint(kind)
    loaded, plain = (loaded_by(isa, path, "bfloat16") for path in (folder / "model.gguf", folder))
    assert type(loaded.backbone) is type(plain.backbone)
    assert logits(poisoned(loaded, 16, 16), row(IDS[:40], 0, range(3))).isfinite().all()


def planned(path: Path, dtype: str = "bfloat16", quantize: str = "none", *, on_host: bool = True) -> int:
    return weight_bytes(read_headers(path), dtype=dtype, quantize=quantize, tied=False, on_host=on_host)


def test_the_memory_is_planned_and_said_at_start(mixed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Codes were counted as bfloat16, three times what they take."""
    file = mixed / "model.gguf"
    with caplog.at_level(logging.INFO):
        loaded = loaded_by("torch", file, "bfloat16")
    assert planned(file) == pytest.approx(loaded.weight_bytes, rel=0.01)
    assert planned(file, on_host=False) == pytest.approx(planned(mixed), rel=0.01) and planned(file) < 0.4 * planned(
        mixed
    )
    lines = [record.getMessage() for record in caplog.records if record.name == "server.model.loading.gguf_codes"]
    assert [line.partition(",")[0] for line in lines] == [
        "Q4_K: codes as stored",
        "Q6_K: codes as stored",
        "F32: numbers of bfloat16",
    ]


def test_what_an_adapter_is_merged_into_is_planned_as_numbers(tmp_path: Path, mixed: Path) -> None:
    """Counted as codes, a model passed the check at start with a third of what it takes.

    A gate that became numbers beside an up of codes would leave the whole decoder to torch: both are.
    """
    file, adapter = mixed / "model.gguf", write_adapter(tmp_path / "adapter", mixed, modules=["mlp.gate_proj"])
    settings = EngineSettings(device="cpu", dtype="bfloat16", cpu_isa="torch", merge_adapter=str(adapter))
    loaded = load(file, settings, nothing)
    tensors = read_headers(file, merged_parts(str(adapter)))
    expected = weight_bytes(tensors, dtype="bfloat16", quantize="none", tied=False)
    assert expected == pytest.approx(loaded.weight_bytes, rel=0.01) and expected > 1.2 * planned(file)
    changed = {tensor.name for tensor in tensors if "mlp" in tensor.name and tensor.dtype == "F32"}
    ends = (".gate_proj.weight", ".up_proj.weight")
    assert changed == {tensor.name for tensor in tensors if tensor.name.endswith(ends)} != set()


def test_no_two_copies_are_held_while_a_file_loads(mixed: Path) -> None:
    """All numbers at once, multiplied out, would take twice what is allowed beside the codes."""
    file = mixed / "model.gguf"
    with AllocationMeter() as meter:
        loaded = loaded_by("torch", file, "bfloat16")
    largest = 1003 * HIDDEN
    assert meter.peak < file.stat().st_size + loaded.weight_bytes + 8 * largest


def test_wider_codes_are_quantized_and_narrower_ones_are_not(tmp_path: Path, mixed: Path) -> None:
    with pytest.raises(CannotStart, match=r"--quantize int8: no matrix of .* takes more bits"):
        loaded_by("torch", mixed / "model.gguf", "bfloat16", "int8")
    assert quantizable_bits(read_headers(mixed / "model.gguf"), on_host=True) == 6
    file = tmp_path / "m.gguf"
    write_gguf(mixed, file, [Type.Q8_0], tokenizer=False)
    loaded = loaded_by("torch", file, "bfloat16", "int4")
    assert planned(file, quantize="int4") == pytest.approx(loaded.weight_bytes, rel=0.01)
    assert planned(file, quantize="int4") < 0.8 * planned(file)


def test_broken_scales_are_named(tmp_path: Path) -> None:
    """NaN would spread through every reply."""
    file = tmp_path / "m.gguf"
    source = gguf_checkpoint("qwen2")
    write_gguf(source, file, [Type.Q8_0], tokenizer=False)
    tensor = next(one for one in gguf.GGUFReader(file).tensors if one.name == "blk.1.ffn_up.weight")
    content = bytearray(file.read_bytes())
    content[tensor.data_offset : tensor.data_offset + 2] = b"\xff\x7f"
    file.write_bytes(content)
    with pytest.raises(CannotStart, match=r"m\.gguf: blk\.1\.ffn_up\.weight cannot be read: scales must be finite"):
        loaded_by("torch", file, "bfloat16")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.gguf of a mixture of experts, and the checkpoint of the same numbers."""
    folder = tmp_path_factory.mktemp("mixture")
    sizes: Any = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 1003}
    heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    experts: Any = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**sizes, **heads, **experts, norm_topk_prob=True, max_position_embeddings=512)
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    types = [Type.Q8_0, Type.Q4_1, Type.Q5_0]
    numbers = write_gguf(folder, folder / "model.gguf", types, tokenizer=False, experts_as=Type.Q4_0)
    save_file(numbers, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_experts_of_a_file_keep_their_codes(isa: str, mixture: Path) -> None:
    """Gates and ups of an expert lie in two tensors; multiplied out, they took four times the memory."""
    ours, theirs = (loaded_by(isa, path, "float32") for path in (mixture / "model.gguf", mixture))
    assert isinstance(ours.backbone, NativeBackbone) and ours.weight_bytes < 0.3 * theirs.weight_bytes
    assert planned(mixture / "model.gguf", "float32") == pytest.approx(ours.weight_bytes, rel=0.02)
    found, expected = (logits(poisoned(one, 16, 16), row(IDS[:77], 0, range(8, 16))) for one in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
    runner = poisoned(ours, 16, 16)
    mates = [row(IDS[at : at + 9], 0, [at]) for at in range(3)]
    assert torch.equal(logits(runner, row(IDS[:77], 0, range(8, 16)), *mates)[:77], found)
    alone = [logits(runner, row(IDS[at : at + 1], at, range(8, 16))) for at in (3, 76)]
    assert torch.equal(torch.cat(alone), found[[3, 76]])


def test_codes_of_another_shape_than_the_configurations_are_named(tmp_path: Path, mixture: Path) -> None:
    """transformers does not compare shapes of what a quantization method replaces: kernels would read beyond them."""
    folder = tmp_path / "m"
    shutil.copytree(mixture, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"moe_intermediate_size": 32}))
    write_gguf(folder, folder / "model.gguf", [Type.Q8_0], tokenizer=False, experts_as=Type.Q4_0)
    with pytest.raises(CannotStart, match=r"experts\.\w+ has the shape \[6, .*\]; the configuration says \[6, "):
        loaded_by("torch", folder / "model.gguf", "bfloat16")
