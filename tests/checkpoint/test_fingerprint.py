"""Whether two folders hold the same model."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from server.checkpoint.fingerprint import Fingerprint, fingerprint
from server.checkpoint.locate import BUILT_IN_FOLDER
from tests.adapter_folders import write_adapter


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(BUILT_IN_FOLDER, tmp_path / "copy")
    return tmp_path / "copy"


def of(folder: Path) -> Fingerprint:
    return fingerprint(folder, Tokenizer.from_file(str(folder / "tokenizer.json")))


def change_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=7))


def test_a_copy_that_a_tool_has_written_again_is_the_same_model(copy: Path) -> None:
    change_json(copy / "config.json", transformers_version="9.9", _name_or_path="elsewhere", dtype="float32")
    change_json(copy / "tokenizer.json")
    assert of(copy) == of(BUILT_IN_FOLDER)


def test_a_fine_tune_of_the_same_shape_is_another_model(copy: Path) -> None:
    """Its replies are other ones, and a reply that goes on there would change its voice in the middle."""
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 3, len(data), 1024):
        data[place] ^= 1
    path.write_bytes(data)
    assert of(copy).difference(of(BUILT_IN_FOLDER)) == "weights"


def test_another_vocabulary_or_shape_is_named(copy: Path) -> None:
    change_json(copy / "config.json", rope_theta=12345.0)
    assert of(copy).difference(of(BUILT_IN_FOLDER)) == "config.json or --merge-adapter"
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.add_tokens(["<|new|>"])
    assert fingerprint(copy, tokenizer).difference(of(BUILT_IN_FOLDER)) == "vocabulary"


def test_a_machine_without_weights_serves_the_same_model(copy: Path) -> None:
    """The API process needs none."""
    (copy / "model.safetensors").unlink()
    assert of(copy).weights == ""
    assert of(copy).difference(of(BUILT_IN_FOLDER)) == of(BUILT_IN_FOLDER).difference(of(copy)) == ""


def test_a_merged_adapter_with_another_scale_is_another_model(tmp_path: Path) -> None:
    """Its weights are the same; the sum is not."""
    tokenizer = Tokenizer.from_file(str(BUILT_IN_FOLDER / "tokenizer.json"))
    one, other, same = (
        fingerprint(BUILT_IN_FOLDER, tokenizer, str(write_adapter(tmp_path / name, BUILT_IN_FOLDER, lora_alpha=alpha)))
        for name, alpha in (("one", 8), ("other", 16), ("same", 8))
    )
    assert one == same and one.difference(other) == "config.json or --merge-adapter"
    assert one.difference(of(BUILT_IN_FOLDER)) == "config.json or --merge-adapter"
