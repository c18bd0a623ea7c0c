"""Fields of a checkpoint's config.json, or of its GGUF file, that both processes read, without transformers.

Also the rules about its weights by which one part loads them and another estimates their size.
"""

import importlib.util
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import CannotStart
from server.gguf.config import model_config
from server.gguf.header import BlockType, read_header
from server.gguf.weights import StoredWeight

# Prefixes of torch.compile, peft and DistributedDataParallel in front of every tensor's name.
WRAPPERS = ("_orig_mod.", "base_model.model.", "module.")
DTYPES = ("float32", "bfloat16", "float16", "float64")
SCALED_BY_FACTOR = ("yarn", "linear", "dynamic")  # kinds of rotary scaling


@dataclass(frozen=True, slots=True)
class FieldKind:
    """The values that a field of a JSON file may have, in words for an error, and their test."""

    text: str
    admits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _between(least: int, most: int) -> FieldKind:
    text = f"a whole number from {least} to {most}"
    return FieldKind(text, lambda value: type(value) is int and least <= value <= most)


NUMBER = FieldKind("a number", _is_number)
FLAG = FieldKind("true or false", lambda value: isinstance(value, bool))
TEXT = FieldKind("a string", lambda value: isinstance(value, str))
OBJECT = FieldKind("an object", lambda value: isinstance(value, dict))
TEXTS = FieldKind("a list of strings", lambda value: isinstance(value, list) and all(map(TEXT.admits, value)))
IDS = FieldKind(
    "a token id or a list of them",
    lambda value: all(type(one) is int for one in (value if isinstance(value, list) else [value])),
)
DTYPE = FieldKind(f"one of {', '.join(DTYPES)}", lambda value: isinstance(value, str) and value in DTYPES)
SIZE, COUNT, LAYERS = _between(1, 2**31 - 1), _between(0, 2**20), _between(1, 10_000)
MODEL_FIELDS: Mapping[str, FieldKind] = {
    **dict.fromkeys(("dtype", "torch_dtype"), DTYPE),
    **dict.fromkeys(("model_type", "hidden_act"), TEXT),
    **dict.fromkeys(("architectures", "layer_types"), TEXTS),
    **dict.fromkeys(("text_config", "rope_parameters", "rope_scaling", "quantization_config"), OBJECT),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), FLAG),
    **dict.fromkeys(("rms_norm_eps", "rope_theta"), NUMBER),
    **dict.fromkeys(
        (
            "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
            "max_position_embeddings", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
            "linear_value_head_dim", "linear_conv_kernel_dim", "full_attention_interval",
        ),
        SIZE,
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), COUNT),
    "num_hidden_layers": LAYERS,
    "eos_token_id": IDS,
}  # fmt: skip
ROPE_FIELDS: Mapping[str, FieldKind] = {
    "rope_type": TEXT,
    "type": TEXT,
    "rope_theta": NUMBER,
    "factor": NUMBER,
    "original_max_position_embeddings": SIZE,
}


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The config.json of a folder, or what a GGUF file says in its place.

    Raises CannotStart if it cannot be read, or a field is of another kind.
    """
    if checkpoint.is_file():
        path, config = checkpoint, model_config(read_header(checkpoint))
    else:
        path = checkpoint / "config.json"
        config = read_json(path)
    check_fields(config, MODEL_FIELDS, path)
    for fields in (config, text_fields(config)):
        check_fields(fields, MODEL_FIELDS, path)
        for name in ("rope_parameters", "rope_scaling"):
            check_fields(fields.get(name) or {}, ROPE_FIELDS, path)
    return config


def check_fields(fields: Mapping[str, Any], kinds: Mapping[str, FieldKind], path: Path) -> None:
    """Raise CannotStart naming the first field that is neither null nor of its kind."""
    for name, kind in kinds.items():
        if fields.get(name) is not None and not kind.admits(fields[name]):
            raise CannotStart(f"{path}: {name} must be {kind.text}, and is {json.dumps(fields[name])[:60]}")


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


QUANTIZED_WIDTHS: Mapping[str, int] = {"int8": 8, "int4": 4}  # of `--quantize`, in bits
LARGEST_SUPER_GROUP = 32
LEAST_OUTPUTS = 16  # of a matrix that is quantized; gates of one output gain nothing


def is_quantizable(name: str, shape: Sequence[int]) -> bool:
    """Whether `--quantize` is for this tensor: a projection of a layer.

    Embeddings that are no output matrix as well, norms, convolutions and routers stay as they are.
    """
    inside = ".layers." in f".{name}" and ".experts." not in name and name.endswith(".weight")
    other = "norm" in name or "conv1d" in name or name.endswith("mlp.gate.weight")
    return inside and not other and can_be_packed(shape)


def is_quantizable_expert(name: str, shape: Sequence[int]) -> bool:
    """Whether `--quantize` is for this weight of experts on a CPU, one expert's or all stacked."""
    is_weight = name.endswith((".weight", ".gate_up_proj", ".down_proj")) and len(shape) in (2, 3)
    outputs = 64 if name.endswith(".gate_up_proj") else 32  # of gate and up together; both or none are quantized
    return ".experts." in name and is_weight and shape[-2] % outputs == 0 and shape[-1] % 32 == 0


def can_be_packed(shape: Sequence[int]) -> bool:
    """Whether a matrix of this shape can be quantized in groups."""
    return len(shape) == 2 and shape[0] >= LEAST_OUTPUTS and shape[1] % 32 == 0


def head_width(width: int, on_host: bool) -> int:
    """Bits of an output matrix, which is often the embedding as well, beside projections of this width.

    It loses most by few bits, and is a third of the bytes of a small model. A GPU has no product of six bits.
    """
    return 6 if width == 4 and on_host else 8


def quantized_group(width: int, inputs: int) -> int:
    """Inputs that share a scale."""
    return 64 if width == 8 and inputs % 64 == 0 else 32


def super_group(groups: int) -> int:
    """Groups whose scales of eight bits share a number."""
    return max(size for size in range(1, LARGEST_SUPER_GROUP + 1) if groups % size == 0)


def quantized_bytes(width: int, shape: Sequence[int]) -> int:
    """Bytes of a matrix [outputs, inputs] in memory: codes, and scales of two bytes or as of four bits, in panels."""
    outputs, inputs = math.ceil(math.prod(shape[:-1]) / 16) * 16, shape[-1]
    groups = inputs // quantized_group(width, inputs)
    scales = groups * 2 + groups // super_group(groups) * 8 if width == 4 else groups * 2
    return outputs * (inputs * width // 8 + scales)


def kept_codes(weights: Iterable[StoredWeight], is_merged: Callable[[str], bool] | None = None) -> dict[str, BlockType]:
    """The weights of a GGUF file whose codes a CPU multiplies as they are stored, with their types.

    These are matrices, and experts of a layer, both of their weights or neither. Gate and up of a layer, whose product
    is one, are kept both or neither. `is_merged`: whether an adapter is merged into the weight of a name, which takes
    its numbers.
    """
    found = {
        weight.name: weight.tensors[0].type
        for weight in weights
        if _keeps_codes(weight) and not (is_merged and is_merged(weight.name))
    }
    pairs = (("mlp.gate_proj", "mlp.up_proj"), ("shared_expert.gate_proj", "shared_expert.up_proj"))
    for one, other in (*pairs, ("experts.gate_up_proj", "experts.down_proj")):
        for name in list(found):
            partner = name.replace(one, other) if one in name else name.replace(other, one)
            if partner not in found:
                del found[name]
    return found


def _keeps_codes(weight: StoredWeight) -> bool:
    types = {tensor.type for tensor in weight.tensors}
    fits = can_be_packed(weight.shape) or is_quantizable_expert(weight.name, weight.shape)
    is_router = weight.name.endswith("mlp.gate.weight")
    return len(types) == 1 and all(type.code_bits for type in types) and weight.keeps_rows and fits and not is_router


def is_requantized(name: str, shape: Sequence[int], bits: int, width: int) -> bool:
    """Whether `--quantize` of this width, or 0, is for a weight whose codes have this number of bits."""
    return 0 < width < bits and (is_quantizable(name, shape) or is_quantizable_expert(name, shape))


def kept_bytes(block: BlockType, shape: Sequence[int]) -> int:
    """Bytes in memory of matrices [..., inputs] of such codes, in panels."""
    return math.ceil(math.prod(shape[:-1]) / 16) * 16 * shape[-1] // block.elements * block.packed_bytes


def computes_float8(*, on_host: bool) -> bool:
    """Whether float8 weights stay as they are: on a card, with the package that brings the kernels.

    Elsewhere they are multiplied out to bfloat16 while they are loaded.
    """
    return not on_host and importlib.util.find_spec("kernels") is not None
