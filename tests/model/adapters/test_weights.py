"""Files of adapters that cannot be served: each is refused in one line that says why, and nothing is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.adapter_folder import CONFIG, WEIGHTS, PartName
from server.errors import CannotStart
from server.memory.adapters import AdapterSizes, adapter_sizes
from server.model.adapters import weights
from server.model.adapters.merging import MergedAdapter
from server.model.adapters.weights import LayerSize, Targets, read_adapter
from tests.adapter_folders import weights_of, write_adapter
from tests.checkpoints import tiny_checkpoint

Change = Callable[[Path], None]


def targets_of(checkpoint: Path) -> Targets:
    """The linear layers of a checkpoint."""
    return {part: LayerSize(inputs, outputs) for _, part, (outputs, inputs) in weights_of(checkpoint)}


def raw(content: bytes) -> Change:
    """Write this in place of the weights."""

    def apply(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(content)

    return apply


def header(entries: Any) -> bytes:
    """A file with this header and no data."""
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the tensors of the file."""

    def apply(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return apply


def first(found: dict[str, torch.Tensor], side: str) -> str:
    return next(name for name in sorted(found) if f"lora_{side}" in name)


def add(name: str, size: int = 4) -> Change:
    return tensors(lambda found: found.update({name: torch.ones(size, size)}))


PLACE = "base_model.model.model.layers.0"
FAULTS: list[tuple[Change, str]] = [
    (raw(b""), "cannot read"),
    (raw(b"\xff" * 64), "cannot read"),
    (raw(header({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})), "cannot read"),
    (raw(header([1, 2])), "cannot read"),
    (raw(header({})), "holds no LoRA weights"),
    (tensors(lambda found: found.pop(first(found, "B"))), "lora_B is missing"),
    (tensors(lambda found: found.update({first(found, "A"): torch.ones(8, 32)})), "another model"),
    (tensors(lambda found: found[first(found, "A")].fill_(torch.nan)), "not finite"),
    (tensors(lambda found: found[first(found, "B")].fill_(torch.inf)), "not finite"),
    (tensors(lambda found: found.update({first(found, "A"): torch.ones(8, 64, dtype=torch.int32)})), "as I32"),
    (add(f"{PLACE}.mlp.experts.0.up_proj.lora_A.weight"), "experts"),
    (add(f"{PLACE}.self_attn.q_proj.lora_magnitude_vector"), "DoRA"),
    (add("base_model.model.lm_head.lora_A.weight"), "the output head"),
    (add("base_model.model.model.embed_tokens.lora_embedding_A"), "embeddings"),
    (add(f"{PLACE}.self_attn.q_proj.bias"), "biases"),
    (add(f"{PLACE}.input_layernorm.weight"), "no factor"),
    (add("base_model.model.model.layers.99999999.self_attn.q_proj.lora_A.weight"), "no factor"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_a_file_that_cannot_be_served_is_refused_in_one_line(tmp_path: Path, change: Change, words: str) -> None:
    checkpoint = tiny_checkpoint("llama")
    change(write_adapter(tmp_path, checkpoint))
    with pytest.raises(CannotStart, match=words) as refused:
        read_adapter(tmp_path, targets_of(checkpoint), torch.float32)
    assert "\n" not in str(refused.value)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    """A layer too many: beside the model and merged alike."""
    checkpoint = tiny_checkpoint("llama")
    write_adapter(tmp_path, checkpoint)
    targets = dict(targets_of(checkpoint))
    del targets[PartName(2, "self_attn.q_proj")]
    with pytest.raises(CannotStart, match=r"another model: this one has no layers\.2\.self_attn\.q_proj"):
        read_adapter(tmp_path, targets, torch.float32)
    with pytest.raises(CannotStart, match="another model"):
        MergedAdapter(tmp_path).finish()
    with pytest.raises(CannotStart, match="another model"):
        MergedAdapter(tmp_path).merged("model.layers.0.self_attn.q_proj.weight", torch.ones(3, 3), torch.float32)


def test_a_factor_that_is_no_matrix_is_not_merged(tmp_path: Path) -> None:
    change = tensors(lambda found: found.update({first(found, "A"): torch.ones(()), first(found, "B"): torch.ones(())}))
    change(write_adapter(tmp_path, tiny_checkpoint("llama")))
    with pytest.raises(CannotStart, match="have a shape"):
        MergedAdapter(tmp_path)


def test_a_quantized_weight_takes_no_merge(tmp_path: Path) -> None:
    merge = MergedAdapter(write_adapter(tmp_path, tiny_checkpoint("llama")))
    with pytest.raises(CannotStart, match=r"quantized.*--adapter NAME=FOLDER"):
        merge.merged("model.layers.0.self_attn.q_proj.weight", torch.ones(3, 3, dtype=torch.int8), torch.float32)


def test_numbers_beyond_the_models_type_are_refused(tmp_path: Path) -> None:
    """Scaled to infinity in float16, one adapter's zeros times infinity would be NaN."""
    checkpoint = tiny_checkpoint("llama")
    write_adapter(tmp_path, checkpoint, lora_alpha=1e7)
    read_adapter(tmp_path, targets_of(checkpoint), torch.float32)
    with pytest.raises(CannotStart, match=r"not in torch\.float16"):
        read_adapter(tmp_path, targets_of(checkpoint), torch.float16)


def test_the_digest_tells_adapters_apart(tmp_path: Path) -> None:
    """It keeps cached prefixes apart: of other weights, and of the same weights with another scale."""
    checkpoint = tiny_checkpoint("llama")
    one, same, seed, scale = (
        read_adapter(write_adapter(tmp_path / name, checkpoint, **fields), None, torch.float32).digest  # type: ignore[arg-type]
        for name, fields in (("a", {}), ("b", {}), ("c", {"seed": 1}), ("d", {"lora_alpha": 3}))
    )
    assert one == same and len({one, seed, scale}) == 3


def test_a_folder_that_is_written_again_while_it_is_read_gives_what_its_digest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest of files that were replaced before their weights were read let new weights use old ones' prefixes."""
    checkpoint = tiny_checkpoint("llama")
    first, folder = (write_adapter(tmp_path / name, checkpoint) for name in ("first", "folder"))
    read_factors = weights._read_factors

    def replaced(*arguments: Any) -> Any:
        write_adapter(tmp_path / "new", checkpoint, seed=1)
        (tmp_path / "new" / WEIGHTS).replace(folder / WEIGHTS)
        return read_factors(*arguments)

    monkeypatch.setattr(weights, "_read_factors", replaced)
    read = read_adapter(folder, None, torch.float32)
    monkeypatch.undo()
    again, before = (read_adapter(one, None, torch.float32) for one in (folder, first))
    part = next(iter(read.factors))
    assert torch.equal(read.factors[part].down, again.factors[part].down)
    assert read.digest == again.digest != before.digest


def test_the_size_is_known_from_the_header(tmp_path: Path) -> None:
    """The rank was that of the configuration, which the pattern of a layer may exceed."""
    folder = write_adapter(tmp_path, tiny_checkpoint("llama"), rank=4, rank_pattern={"self_attn.q_proj": 6})
    assert adapter_sizes(folder) == AdapterSizes(sum(one.numel() for one in load_file(folder / WEIGHTS).values()), 6)
    (folder / CONFIG).unlink()
    with pytest.raises(CannotStart, match=f"has no {CONFIG}"):
        adapter_sizes(folder)
