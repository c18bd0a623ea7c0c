"""Files of a checkpoint's folder. Every fault is a CannotStart of one line that names the file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.config_json import read_json
from server.errors import CannotStart

POINTER = b"version https://git-lfs.github.com/spec/"
READ_SUFFIXES = (".json", ".safetensors", ".jinja")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model"


def check_folder(folder: Path) -> None:
    """Raise CannotStart unless the folder has a config.json and a tokenizer.json, and files that can be read."""
    if not folder.exists():
        raise CannotStart(f"{folder} does not exist")
    check_files(folder)
    if not (folder / "config.json").is_file():
        first = min(folder.glob("*.gguf"), default=None)
        instead = f"; give one of its GGUF files, such as {first}" if first else ""
        raise CannotStart(f"{folder} holds no config.json, so it is no checkpoint{instead}")
    if not (folder / "tokenizer.json").is_file():
        raise CannotStart(
            f"{folder} holds no tokenizer.json; save the tokenizer once with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


def check_files(folder: Path) -> None:
    """Raise CannotStart for the folder of a LoRA adapter, and for files whose content git-lfs has not fetched."""
    if (folder / ADAPTER_CONFIG).is_file() and _is_adapter_alone(folder):
        raise CannotStart(
            f"{folder} is a LoRA adapter of {_base_model(folder)}, without that model's weights; merge them with peft "
            "(AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(...)), save the "
            "tokenizer beside them, and serve that folder"
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in READ_SUFFIXES and path.is_file() and _begins_as_pointer(path):
            raise CannotStart(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in {folder}")


def read_text(path: Path) -> str:
    """A file's text; raises CannotStart."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"cannot read {path}: {error}") from error


def read_json_if_present(path: Path) -> dict[str, Any]:
    """A file's JSON object, empty if there is no such file; raises CannotStart."""
    return read_json(path) if path.is_file() else {}


def stored_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The file that holds the checkpoint's chat template, and the template; None if it has none.

    As transformers does where there are tools: of several templates the one named `tool_use`. `folder` may be a GGUF
    file, whose template stands in the configuration of its tokenizer.
    """
    for path in (folder / "additional_chat_templates" / "tool_use.jinja", folder / "chat_template.jinja"):
        if path.is_file():
            return str(path), read_text(path)
    stored = tokenizer_config.get("chat_template")
    origin = str(folder if folder.is_file() else folder / "tokenizer_config.json")
    if isinstance(stored, list):  # named templates
        named = {entry["name"]: entry["template"] for entry in stored}
        stored = named.get("tool_use", named.get("default", stored[0]["template"] if len(stored) == 1 else None))
    if isinstance(stored, str):
        return origin, stored
    path = folder / "chat_template.json"  # written by multimodal processors
    if path.is_file() and isinstance(text := read_json(path).get("chat_template"), str):
        return str(path), text
    return origin, None


def _is_adapter_alone(folder: Path) -> bool:
    """Whether no weights of a whole model are there; Trainer leaves other files in such folders, and some a config."""
    weights = (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))
    return all(path.name.startswith(ADAPTER_WEIGHTS) for path in weights)


def _base_model(folder: Path) -> str:
    try:
        fields = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "another model"
    name = fields.get("base_model_name_or_path") if isinstance(fields, dict) else None
    return name if isinstance(name, str) and name else "another model"


def _begins_as_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError as error:
        raise CannotStart(f"cannot read {path}: {error}") from error
