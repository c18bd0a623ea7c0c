"""Names and configurations of adapters: what is read as PEFT reads it, and what is refused in one line."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from peft.utils.other import get_pattern_key

from server.adapter_folder import CONFIG, WEIGHTS, parse_adapters, read_adapter_config, tensor_part, weight_part
from server.errors import CannotStart

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def folder_with(path: Path, **fields: Any) -> Path:
    """A folder with this configuration, and weights that nobody reads here."""
    path.mkdir(exist_ok=True)
    (path / CONFIG).write_text(json.dumps(PLAIN | fields), encoding="utf-8")
    (path / WEIGHTS).write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"peft_type": None}, "only LORA"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "experts"),
        ({"trainable_token_indices": [1]}, "token embeddings"),
        ({"layer_replication": [[0, 2]]}, "the order of the layers"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"use_something_new": True}, "not known here"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0}, "r must be"),
        ({"r": "8"}, "r must be"),
        ({"r": None}, "has no r"),
        ({"lora_alpha": None}, "has no lora_alpha"),
        ({"alpha_pattern": {"q_proj": "much"}}, "alpha_pattern gives a number above 0"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern gives a whole number"),
        ({"rank_pattern": {"q_proj": 0.5}}, "rank_pattern gives a whole number"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_served_is_refused_in_one_line(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(CannotStart, match=words) as refused:
        read_adapter_config(folder_with(tmp_path, **fields))
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_fields_that_change_nothing_are_taken(tmp_path: Path) -> None:
    """As PEFT writes them by default."""
    usual = {
        "bias": "none", "use_dora": False, "modules_to_save": None, "lora_dropout": 0.1, "init_lora_weights": True,
        "layers_to_transform": None, "rank_pattern": {}, "loftq_config": {}, "use_qalora": False,
    }  # fmt: skip
    assert read_adapter_config(folder_with(tmp_path, **usual)).scale_of("model.layers.0.mlp.up_proj", 8) == 2.0


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "no pattern"),
        (r"(.)\1", "no pattern"),
        ("(?=q)q_proj", "no pattern"),
        ("(?:(?:a{1000}){1000}){1000}", "no pattern"),
        ("a" * 1001, "longer than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, pattern: str, words: str) -> None:
    with pytest.raises(CannotStart, match=words) as refused:
        read_adapter_config(folder_with(tmp_path, alpha_pattern={pattern: 4}))
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_more_patterns_than_any_adapter_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="5000 patterns"):
        read_adapter_config(folder_with(tmp_path, rank_pattern={f"layers.{number}": 4 for number in range(5000)}))


PATTERNS = [
    "q_proj",
    "self_attn.q_proj",
    "attn.q_proj",
    "proj",
    "^model.layers.12.self_attn.q_proj",
    "^q_proj",
    "model.layers.12.self_attn.q_proj",
    r".*\.q_proj",
    r"layers\.(1[0-2]|3)\..*",
    r"layers\.\d+\.self_attn\.[qk]_proj",
    "q_proj|k_proj",
    "q_proj$",
    "Q_PROJ",
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_those_of_peft(tmp_path: Path, pattern: str) -> None:
    config = read_adapter_config(folder_with(tmp_path, rank_pattern={pattern: 4}))
    for name in ("model.layers.12.self_attn.q_proj", "model.layers.2.self_attn.k_proj", "model.layers.3.mlp.up_proj"):
        assert config.rank_of(name) == (4 if get_pattern_key([pattern], name) == pattern else 8)


def test_a_pattern_cannot_hold_up_the_process(tmp_path: Path) -> None:
    """Python's `re` tried for longer than anyone waits, and no other thread ran while it did."""
    hostile = {"(.+)+x": 4, "(_|_|[a-z.0-9_])*X": 5, ".*.*.*.*.*.*.*.*.*.*.*.*X": 6}
    config = read_adapter_config(folder_with(tmp_path, alpha_pattern=hostile))
    began_s = time.monotonic()
    assert config.scale_of("model.layers.12." + "self_attn." * 20 + "q_proj", 8) == 2.0
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    (folder_with(tmp_path) / missing).unlink()
    with pytest.raises(CannotStart, match=f"has no {missing}"):
        read_adapter_config(tmp_path)


def test_a_folder_that_the_system_does_not_look_into_is_refused(tmp_path: Path) -> None:
    """The name comes with a request: an OSError in the engine's loop would end its process."""
    with pytest.raises(CannotStart, match="File name too long"):
        read_adapter_config(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["one"], "NAME=FOLDER"),
        (["=folder"], "NAME=FOLDER"),
        (["one="], "NAME=FOLDER"),
        (["base={}"], "is taken"),
        (["one={}", "one={}"], "is taken"),
        (["two words={}"], "none of them blank"),
        ([f"{'x' * 300}={{}}"], "1 to 256"),
        (["one=/nowhere/at/all"], "no folder"),
    ],
)
def test_options_that_cannot_be_served(tmp_path: Path, values: list[str], words: str) -> None:
    folder_with(tmp_path)
    with pytest.raises(CannotStart, match=words):
        parse_adapters([value.format(tmp_path) for value in values], ("base",))


def test_names_of_tensors() -> None:
    name = "base_model.model.model.layers.12.self_attn.q_proj.lora_A.weight"
    assert [str(part) for part in tensor_part(name) or ()] == ["layers.12.self_attn.q_proj", "A"]
    in_a_tower = "base_model.model.model.language_model.layers.3.mlp.up_proj.lora_B.weight"
    assert [str(part) for part in tensor_part(in_a_tower) or ()] == ["layers.3.mlp.up_proj", "B"]
    assert tensor_part("base_model.model.model.visual.layers.3.mlp.up_proj.lora_B.weight") is None
    assert tensor_part("base_model.model.model.layers.0.mlp.experts.1.up_proj.lora_A.weight") is None
    assert str(weight_part("model.layers.0.mlp.up_proj.weight")) == "layers.0.mlp.up_proj"
    assert weight_part("model.embed_tokens.weight") is None
