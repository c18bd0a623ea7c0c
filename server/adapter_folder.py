"""Folder of a LoRA adapter, as PEFT saves it: its name here, its configuration, and the names of its weights.

Both processes read it; every fault is a CannotStart of one line that names the folder. Adapters that change anything
but the products of a decoder's linear layers are refused.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonschema_rs

from server.config_json import FLAG, NUMBER, OBJECT, SIZE, TEXT, FieldKind, bare_name, check_fields, read_json
from server.errors import CannotStart

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_NAME = 256  # characters
MAX_RANK = 4096
MAX_PATTERNS, MAX_PATTERN = 4096, 1000  # of one kind, and characters of each
# Of one pattern: bytes of its automaton and of its cache. It matches in linear time, as Python's `re` does not.
PATTERN_OPTIONS = jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 16)
FIELDS: Mapping[str, FieldKind] = {
    "peft_type": TEXT,
    "r": SIZE,
    "lora_alpha": NUMBER,
    "use_rslora": FLAG,
    "bias": TEXT,
    "rank_pattern": OBJECT,
    "alpha_pattern": OBJECT,
    "base_model_name_or_path": TEXT,
}
# Fields of PEFT's LoraConfig that change more than the products; each in words.
REFUSED_FIELDS: Mapping[str, str] = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules",
    "lora_bias": "biases",
    "trainable_token_indices": "token embeddings",
    "target_parameters": "parameters that are no linear layer's, as of experts",
    "layer_replication": "the order of the layers",
    "fan_in_fan_out": "transposed weights",
    "alora_invocation_tokens": "only the tokens behind an invocation",
    "arrow_config": "a choice among several adapters",
    "monteclora_config": "weights that are drawn",
}
PLAIN_STARTS = ("gaussian", "eva", "orthogonal")  # of `init_lora_weights`, beside true and false
# `base_model.model.` is taken off before.
TENSOR = re.compile(r"(?:model\.|language_model\.)*layers\.(\d{1,5})\.(\w+\.\w+)\.lora_([AB])\.weight")
WEIGHT = re.compile(r"(?:model\.|language_model\.)*layers\.(\d{1,5})\.(\w+\.\w+)\.weight")


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter to load: the name that requests write in `model`, and its folder."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class PartName:
    """A linear layer of a decoder: the number of its layer, and its name in there (`self_attn.q_proj`)."""

    layer: int
    module: str

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.module}"


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of adapter_config.json decides the products. Patterns are regular expressions of modules' names.

    `compiled`: the validator of each pattern, as `_compile` makes it.
    """

    folder: Path
    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    base_model: str
    compiled: Mapping[str, Any] = field(compare=False, repr=False)

    def rank_of(self, module: str) -> int:
        """The rank of a module of this name."""
        return int(self._of(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str, rank: int) -> float:
        """The factor of a module's product, as PEFT computes it."""
        alpha = float(self._of(self.alpha_pattern, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _of(self, patterns: Mapping[str, Any], module: str, default: float) -> float:
        """As PEFT's `get_pattern_key`: the first pattern that matches the end of the name, from one of its parts on."""
        for pattern, value in patterns.items():
            if self.compiled[pattern].is_valid(module):
                return float(value)
        return default


def parse_adapters(values: Sequence[str], taken: Collection[str]) -> tuple[AdapterSource, ...]:
    """The adapters of `--adapter NAME=FOLDER` options; `taken` are names of the model. Raises CannotStart."""
    found: dict[str, AdapterSource] = {}
    for value in values:
        name, _, folder = value.partition("=")
        if not name or not folder:
            raise CannotStart(f"--adapter {value}: write it as NAME=FOLDER")
        if fault := fault_of_name(name, (*taken, *found)):
            raise CannotStart(f"--adapter {value}: {fault}")
        found[name] = AdapterSource(name, Path(folder).expanduser().absolute())
        read_adapter_config(found[name].folder)
    return tuple(found.values())


def fault_of_name(name: str, taken: Collection[str]) -> str:
    """Why an adapter cannot have this name beside those that are taken; empty if it can."""
    if not name or len(name) > MAX_NAME or not name.isprintable() or any(map(str.isspace, name)):
        return f"an adapter's name has 1 to {MAX_NAME} characters, none of them blank"
    return f"the name {name} is taken, by the model or by another adapter" if name in taken else ""


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The configuration of an adapter that can be served; raises CannotStart for any other, and for missing files."""
    path = folder / CONFIG
    _require_files(folder)
    fields = read_json(path)
    check_fields(fields, FIELDS, path)
    _refuse_fields(fields, path)
    if fields.get("r") is None or fields.get("lora_alpha") is None:
        raise CannotStart(f"{path} has no {'r' if fields.get('r') is None else 'lora_alpha'}")
    rank_pattern = _patterns(fields, "rank_pattern", SIZE, path)
    alpha_pattern = _patterns(fields, "alpha_pattern", NUMBER, path)
    return AdapterConfig(
        folder,
        rank=fields["r"],
        alpha=float(fields["lora_alpha"]),
        use_rslora=bool(fields.get("use_rslora")),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        base_model=fields.get("base_model_name_or_path") or "",
        compiled={pattern: _compile(pattern, path) for pattern in {**rank_pattern, **alpha_pattern}},
    )


def _require_files(folder: Path) -> None:
    try:
        if not folder.is_dir():
            raise CannotStart(f"the adapter {folder} is no folder")
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise CannotStart(f"the adapter {folder} has no {name}; save it with PEFT's save_pretrained")
    except OSError as error:  # no permission, or a name that is too long
        raise CannotStart(f"cannot read the adapter {folder}: {error.strerror}") from error


def _patterns(fields: Mapping[str, Any], name: str, kind: FieldKind, path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = fields.get(name) or {}
    if len(found) > MAX_PATTERNS:
        raise CannotStart(f"{path}: {name} has {len(found)} patterns; {MAX_PATTERNS} are the most")
    for value in found.values():
        if not kind.admits(value) or value <= 0:
            raise CannotStart(f"{path}: {name} gives {kind.text} above 0, not {json.dumps(value)[:60]}")
    return found


def _compile(pattern: str, path: Path) -> Any:
    """A validator of the names that PEFT's `get_pattern_key` finds: those that end as the pattern says, at a dot.

    Patterns that look around or refer back are refused: matching them may take for ever.
    """
    if len(pattern) > MAX_PATTERN:
        raise CannotStart(f"{path}: the pattern {pattern[:60]!r} is longer than {MAX_PATTERN} characters")
    try:
        return jsonschema_rs.Draft202012Validator(
            {"pattern": rf"^(.*\.)?({pattern})$"}, pattern_options=PATTERN_OPTIONS
        )
    except jsonschema_rs.ValidationError as error:
        text = f"{path}: {pattern[:60]!r} is no pattern that is read here: no look-around, no references, nothing large"
        raise CannotStart(text) from error


def _refuse_fields(fields: Mapping[str, Any], path: Path) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise CannotStart(f"{path}: peft_type is {json.dumps(kind)}, and only LORA adapters are served")
    if (fields.get("bias") or "none") != "none":
        raise CannotStart(f"{path}: bias is {fields['bias']!r}; adapters that change biases are not served")
    for name, what in REFUSED_FIELDS.items():
        if fields.get(name):
            raise CannotStart(f"{path}: {name} is set; adapters that change {what} are not served")
    if foreign := [name for name in fields if name.startswith("use_") and name != "use_rslora" and fields[name]]:
        raise CannotStart(f"{path}: {foreign[0]} is set, which is not known here")
    start = fields.get("init_lora_weights", True)
    if isinstance(start, str) and start not in PLAIN_STARTS:
        raise CannotStart(
            f"{path}: init_lora_weights is {start!r}, which changes the model's own weights; save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion"
        )


def tensor_part(name: str) -> tuple[PartName, Literal["A", "B"]] | None:
    """The layer that a tensor of an adapter's file is for, and which factor it is; None if it is no factor of one."""
    found = TENSOR.fullmatch(bare_name(name))
    if found is None:
        return None
    return PartName(int(found[1]), found[2]), "A" if found[3] == "A" else "B"


def weight_part(name: str) -> PartName | None:
    """The layer that a weight of a checkpoint is of; None if it is none of a decoder's linear layers."""
    found = WEIGHT.fullmatch(bare_name(name))
    return None if found is None else PartName(int(found[1]), found[2])
