"""Texts of a checkpoint: configuration, tokenizer and sampling defaults, from its folder or from its GGUF file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.checkpoint.folder import check_folder, read_json_if_present, read_text
from server.config_json import read_config, read_json
from server.errors import CannotStart
from server.gguf.header import read_header
from server.gguf.tokenizer import tokenizer_config, tokenizer_json

GENERATION = "generation_config.json"
SAMPLING_KEY = "general.sampling."
SAMPLING = {  # keys of a GGUF file behind that -> fields of generation_config.json
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckpointTexts:
    """Contents of config.json and of the tokenizer's and the sampling's files, and the files to name in errors."""

    config_path: Path
    config: Mapping[str, Any]
    tokenizer_path: Path
    tokenizer_json: str
    tokenizer_config: Mapping[str, Any]
    generation_path: Path
    generation: Mapping[str, Any]


def read_texts(path: Path, generation_config: str) -> CheckpointTexts:
    """The texts of a folder or of a GGUF file. Raises CannotStart.

    Those about sampling are its own for "auto", empty for "none", else those of another folder.
    """
    is_own = generation_config == "auto"
    texts = _of_gguf(path, is_own) if path.is_file() else _of_folder(path, is_own)
    if generation_config in ("auto", "none"):
        return texts
    generation_path = Path(generation_config).expanduser() / GENERATION
    if not generation_path.is_file():
        raise CannotStart(f"--generation-config {generation_config}: give auto, none, or a folder with {GENERATION}")
    return replace(texts, generation_path=generation_path, generation=read_json(generation_path))


def _of_folder(folder: Path, with_generation: bool) -> CheckpointTexts:
    check_folder(folder)
    generation_path = folder / GENERATION
    return CheckpointTexts(
        config_path=folder / "config.json",
        config=read_config(folder),
        tokenizer_path=folder / "tokenizer.json",
        tokenizer_json=read_text(folder / "tokenizer.json"),
        tokenizer_config=read_json_if_present(folder / "tokenizer_config.json"),
        generation_path=generation_path,
        generation=read_json_if_present(generation_path) if with_generation else {},
    )


def _of_gguf(path: Path, with_generation: bool) -> CheckpointTexts:
    config = read_config(path)  # first: a model that is not served is named as such, whatever its tokenizer
    header = read_header(path, vocabulary=True)
    sampling = {field: header.metadata.get(SAMPLING_KEY + key) for key, field in SAMPLING.items()}
    return CheckpointTexts(
        config_path=path,
        config=config,
        tokenizer_path=path,
        tokenizer_json=tokenizer_json(header),
        tokenizer_config=tokenizer_config(header),
        generation_path=path,
        generation={name: value for name, value in sampling.items() if value is not None} if with_generation else {},
    )
