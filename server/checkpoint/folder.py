"""Files of a checkpoint's folder. Every fault is a CannotStart of one line that names the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.config_json import read_json
from server.errors import CannotStart


def check_folder(folder: Path) -> None:
    """Raise CannotStart unless the folder has a config.json and a tokenizer.json."""
    if not folder.exists():
        raise CannotStart(f"{folder} does not exist")
    if not folder.is_dir():
        raise CannotStart(f"{folder} is a file; give the folder that holds config.json and the weights")
    if not (folder / "config.json").is_file():
        raise CannotStart(f"{folder} holds no config.json, so it is no checkpoint")
    if not (folder / "tokenizer.json").is_file():
        raise CannotStart(
            f"{folder} holds no tokenizer.json; save the tokenizer once with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


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
    """The file that holds the checkpoint's chat template, and the template; None if it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return str(path), read_text(path)
    stored = tokenizer_config.get("chat_template")
    origin = str(folder / "tokenizer_config.json")
    if isinstance(stored, list):  # named templates; transformers takes tool_use if there are tools
        named = {entry["name"]: entry["template"] for entry in stored if isinstance(entry, dict)}
        stored = named.get("tool_use", named.get("default"))
    if isinstance(stored, str):
        return origin, stored
    path = folder / "chat_template.json"  # written by multimodal processors
    if path.is_file() and isinstance(text := read_json(path).get("chat_template"), str):
        return str(path), text
    return origin, None
