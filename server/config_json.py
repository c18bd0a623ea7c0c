"""Fields of a checkpoint's config.json that both processes read, without transformers.

Also the rules about its weights by which one part loads them and another estimates their size.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.errors import CannotStart

WRAPPERS = ("_orig_mod.", "base_model.model.")  # prefixes of torch.compile and peft in front of every tensor's name
SCALED_BY_FACTOR = ("yarn", "linear", "dynamic")  # kinds of rotary scaling


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json; raises CannotStart if it cannot be read."""
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; raises CannotStart naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotStart(f"cannot read {path}: {error}") from error
    except RecursionError as error:
        raise CannotStart(f"cannot read {path}: it is nested too deep") from error
    if not isinstance(value, dict):
        raise CannotStart(f"{path} does not hold a JSON object")
    return value


def text_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the language model: a multimodal configuration keeps them under `text_config`."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model can attend to; None if the file does not say.

    Rotary scaling by a factor (YaRN, linear, dynamic) multiplies the original length, as in transformers.
    """
    fields = text_fields(config)
    positions = fields.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    rope = fields.get("rope_parameters") or fields.get("rope_scaling")
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) not in SCALED_BY_FACTOR:
        return positions
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if not isinstance(factor, int | float):
        return positions
    return max(positions, int((original if isinstance(original, int) else positions) * factor))


def bare_name(tensor: str) -> str:
    """The name of a tensor without the prefixes of what the model was wrapped in when it was saved."""
    while prefix := next((one for one in WRAPPERS if tensor.startswith(one)), ""):
        tensor = tensor.removeprefix(prefix)
    return tensor


def computes_float8(*, on_host: bool) -> bool:
    """Whether float8 weights stay as they are: on a card, with the package that brings the kernels.

    Elsewhere they are multiplied out to bfloat16 while they are loaded.
    """
    return not on_host and importlib.util.find_spec("kernels") is not None
