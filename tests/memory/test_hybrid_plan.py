"""`toolwire plan` for the published Qwen3.5 shapes: what each sequence costs, and each thousand tokens."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.cli.plan import main
from server.memory.headers import Tensor
from tests.memory.shapes import real_model, write_headers

# As in the models' configurations: layers with a state, value heads, layers with KV, KV heads.
PUBLISHED = {
    "Qwen3.5-0.8B": (18, 16, 6, 2),
    "Qwen3.5-4B": (24, 32, 8, 4),
    "Qwen3.5-9B": (24, 32, 8, 4),
    "Qwen3.5-27B": (48, 48, 16, 4),
    "Qwen3.5-35B-A3B": (30, 32, 10, 2),
}
PRINTED = {  # by hand: see `test_the_sums_by_hand`
    "Qwen3.5-0.8B": ("18.8 MiB", "12.0 MiB"),
    "Qwen3.5-4B": ("49.5 MiB", "32.0 MiB"),
    "Qwen3.5-9B": ("49.5 MiB", "32.0 MiB"),
    "Qwen3.5-27B": ("147.8 MiB", "64.0 MiB"),
    "Qwen3.5-35B-A3B": ("61.9 MiB", "20.0 MiB"),
}


def write_published(name: str, folder: Path) -> Path:
    """As it lies on the hub: the text model below `language_model`, a vision tower and a draft head beside it."""
    _, tensors, text = real_model(name)
    kind = "qwen3_5_moe" if "A3B" in name else "qwen3_5"
    renamed = tuple(replace(one, name=one.name.replace("model.", "model.language_model.", 1)) for one in tensors)
    tower = Tensor("model.visual.blocks.0.attn.qkv.weight", "BF16", (3456, 1152))
    draft_head = Tensor("mtp.fc.weight", "BF16", (64, 128))
    config = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": kind,
        "text_config": text,
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        "vision_config": {"depth": 27, "hidden_size": 1152},
    }
    write_headers(folder, (*renamed, tower, draft_head), config)
    return folder


def cell(printed: str, label: str) -> str:
    line = next(line for line in printed.splitlines() if line.strip().startswith(label))
    return " ".join(line.strip().removeprefix(label).split()[:2])


@pytest.mark.parametrize("name", PUBLISHED)
def test_state_and_kv_of_every_published_shape_are_printed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_published(name, tmp_path)), "--gpu-memory", "96GiB"]) == 0
    printed = capsys.readouterr().out
    assert (cell(printed, "state per sequence"), cell(printed, "KV per 1k tokens")) == PRINTED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sums_by_hand(name: str) -> None:
    """Qwen3.5-27B: 48 layers x (48 heads x 128 x 128 x 4 bytes + (2 x 16 + 48) x 128 channels x 4 x 2 bytes)
    = 48 x (3,145,728 + 81,920) = 154,927,104 bytes a sequence. 16 layers x 2 x 4 heads x 256 x 2 bytes = 65,536
    a token.
    """
    shape, _, _ = real_model(name)
    with_state, value_heads, with_kv, kv_heads = PUBLISHED[name]
    state = with_state * (value_heads * 128 * 128 * 4 + (2 * 16 + value_heads) * 128 * 4 * 2)
    assert shape.state_bytes(2) == state
    assert shape.kv_token_bytes(2) == with_kv * 2 * kv_heads * 256 * 2
    if name == "Qwen3.5-27B":
        assert (state, shape.kv_token_bytes(2)) == (154_927_104, 65_536)


def test_the_vision_tower_and_the_draft_head_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, tensors, text = real_model("Qwen3.5-0.8B")
    (tmp_path / "whole").mkdir()
    (tmp_path / "text").mkdir()
    write_headers(tmp_path / "text", tensors, text)
    shown = []
    for folder in (write_published("Qwen3.5-0.8B", tmp_path / "whole"), tmp_path / "text"):
        assert main([str(folder), "--gpu-memory", "24GiB"]) == 0
        shown.append(cell(capsys.readouterr().out, "weights"))
    assert shown[0] == shown[1]
