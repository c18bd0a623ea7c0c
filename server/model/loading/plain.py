"""Loads dense Llama, Qwen2 and Qwen3 decoders with default rotary positions from safetensors, without transformers.

Importing transformers takes two seconds of every start, and these models need only the names of their weights (as in
transformers' `LlamaForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM`). Any other configuration, and files with other
weights or faults, are left to transformers and its error texts. Weights of few bits are read from checkpoints of GPTQ,
AWQ and compressed-tensors, or made here, one matrix after another, while the files are mapped.
"""

import time
from collections.abc import Iterator, Mapping
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from server.config_json import QUANTIZED_WIDTHS, bare_name, can_be_packed, head_width, is_quantizable, read_config
from server.model.adapters.merging import MergedAdapter, open_merged_adapter
from server.model.adapters.weights import find_targets
from server.model.cpu.layer_reader import supports_decoder
from server.model.cpu.native import NativeBackbone, NativeHead
from server.model.cpu.quantized import choose_look_up, choose_product
from server.model.layers.decoder import Backbone, CompactBackbone
from server.model.layers.packed_linear import pack_linears, release_mapped_pages
from server.model.loading.loaded_model import KvShape, LoadedModel, OnProgress, count_bytes
from server.model.quantization.formats import can_read, lay_out
from server.model.quantization.linear import QuantizedEmbedding, QuantizedLinear, round_inputs, warn_of_unpacking
from server.model.quantization.packed_weight import PackedWeight
from server.model.quantization.quantize import quantize
from server.settings import EngineSettings

Weights = Mapping[str, Tensor | PackedWeight]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
DTYPES = ("float32", "bfloat16", "float16")
DERIVED = ".rotary_emb.inv_freq"  # in some old files, although derived from the configuration


@dataclass(frozen=True, slots=True)
class PlainConfig:
    """The configuration of such a decoder, with transformers' names."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    dtype: str


def load_plain(
    checkpoint: Path, settings: EngineSettings, kernels: CDLL | None, on_progress: OnProgress, began_s: float
) -> LoadedModel | None:
    """Load the checkpoint on the CPU; None if transformers must load it. `kernels`: those of the CPU, or torch's."""
    try:
        fields = read_config(checkpoint)
        config = read_plain_config(fields)
        tensors = dict(_read_weights(checkpoint)) if config else {}
    except (OSError, ValueError, SafetensorError):
        return None
    if config is None:
        return None
    quantization = fields.get("quantization_config")
    weights: Weights = lay_out(quantization, tensors, kernels) if quantization else tensors
    del tensors
    if {name: _shape(weight) for name, weight in weights.items()} != expected_shapes(config):
        return None
    dtype: torch.dtype = getattr(torch, config.dtype if settings.dtype == "auto" else settings.dtype)
    if quantization and settings.dtype == "auto" and dtype == torch.float16 and kernels is not None:
        dtype = torch.bfloat16  # in which the kernels compute the whole decoder; the codes stay as they are
    width = QUANTIZED_WIDTHS.get(settings.quantize, 0)
    merge = open_merged_adapter(settings.merge_adapter)
    weights = dict(convert(weights, config, width, dtype, kernels, on_progress, merge))
    return open_plain(config, weights, settings, kernels, on_progress, began_s)


def open_plain(
    config: PlainConfig,
    weights: Weights,
    settings: EngineSettings,
    kernels: CDLL | None,
    on_progress: OnProgress,
    began_s: float,
) -> LoadedModel:
    """The model of these weights, on the kernels where they compute it."""
    if kernels is None and any(isinstance(weight, PackedWeight) for weight in weights.values()):
        warn_of_unpacking()
    model = PlainModel(config, weights, kernels)
    round_inputs(model, settings)
    layers, targets = model.model.layers, find_targets(model.model)
    backbone: Backbone
    head: nn.Module
    if kernels is not None and supports_decoder(model.model, model.lm_head):
        # These read the mapped files on demand.
        backbone, head = NativeBackbone(model.model, kernels), NativeHead(model.lm_head, kernels)
    else:
        for number, layer in enumerate(layers, 1):
            pack_linears(layer)
            on_progress(0.9 + 0.1 * number / len(layers))
        pack_linears(model)
        backbone, head = CompactBackbone(model.model), model.lm_head
    return LoadedModel(
        backbone=backbone,
        head=head,
        device=torch.device("cpu"),
        dtype=model.model.norm.weight.dtype,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        kv=KvShape(tuple(range(len(layers))), config.num_attention_heads, config.num_key_value_heads, config.head_dim),
        recurrent=None,
        weight_bytes=count_bytes(model),
        load_s=time.monotonic() - began_s,
        kernels=kernels,
        targets=targets,
    )


def _shape(weight: Tensor | PackedWeight) -> tuple[int, ...]:
    return tuple(weight.shape) if isinstance(weight, Tensor) else (weight.outputs, weight.inputs)


def convert(
    weights: Weights,
    config: PlainConfig,
    width: int,
    dtype: torch.dtype,
    kernels: CDLL | None,
    on_progress: OnProgress,
    merge: MergedAdapter | None = None,
) -> Iterator[tuple[str, Tensor | PackedWeight]]:
    """The weights in `dtype`, or with `width` bits; the output matrix, tied or not, has eight then.

    An adapter is merged into each before.
    """
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    for number, (name, stored) in enumerate(weights.items()):
        weight = stored if merge is None else merge.merged(name, stored, dtype)
        if weight is not stored and isinstance(stored, Tensor):
            release_mapped_pages(stored)
        if isinstance(weight, Tensor):
            is_head = name == head and can_be_packed(weight.shape)
            if width and (is_head or is_quantizable(name, weight.shape)):
                bits = head_width(width, on_host=True) if is_head else width
                yield name, quantize(weight, bits, name, kernels)
                release_mapped_pages(weight)
                on_progress(0.9 * number / len(weights))
                continue
            weight = weight.to(dtype)
        yield name, weight
    if merge is not None:
        merge.finish()


def read_plain_config(fields: Mapping[str, Any]) -> PlainConfig | None:
    """Parse config.json; None if it sets anything unsupported or leaves a size to a default."""
    model_type = fields.get("model_type")
    rope = fields.get("rope_parameters") or {"rope_theta": fields.get("rope_theta")}
    dtype = fields.get("dtype") or fields.get("torch_dtype")
    heads, types = fields.get("num_attention_heads"), fields.get("layer_types") or ["full_attention"]
    is_plain = (
        fields.get("architectures") == [ARCHITECTURES.get(str(model_type))]
        and fields.get("hidden_act") == "silu"
        and can_read_quantization(fields.get("quantization_config"))
        and not any(fields.get(name) for name in ("rope_scaling", "use_sliding_window"))
        and not any(fields.get(name) for name in ("attention_bias", "mlp_bias"))
        and set(types) == {"full_attention"}
        and set(rope) <= {"rope_type", "rope_theta"}
        and rope.get("rope_type", "default") == "default"
        and dtype in DTYPES
        and isinstance(fields.get("tie_word_embeddings"), bool)
    )
    if not is_plain:
        return None
    values = {name: fields.get(name) for name in PlainConfig.__slots__} | {"rope_theta": rope.get("rope_theta")}
    if values["head_dim"] is None and model_type != "qwen3" and heads:
        values["head_dim"] = values["hidden_size"] // heads
    config = PlainConfig(**{**values, "dtype": dtype})  # type: ignore[arg-type]
    return config if all(getattr(config, name) is not None for name in PlainConfig.__slots__) else None


def can_read_quantization(quantization: Mapping[str, Any] | None) -> bool:
    """Whether weights so quantized, or not at all, are read without a package."""
    return not quantization or can_read(quantization)


def expected_shapes(config: PlainConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that the files must contain, and no others."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (heads, hidden),
        "self_attn.k_proj.weight": (kv_heads, hidden),
        "self_attn.v_proj.weight": (kv_heads, hidden),
        "self_attn.o_proj.weight": (hidden, heads),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if config.model_type == "qwen2":
        sizes = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        layer |= {f"self_attn.{name}.bias": (size,) for name, size in sizes.items()}
    if config.model_type == "qwen3":
        layer |= {"self_attn.q_norm.weight": (config.head_dim,), "self_attn.k_norm.weight": (config.head_dim,)}
    shapes = {
        f"model.layers.{index}.{name}": shape
        for index in range(config.num_hidden_layers)
        for name, shape in layer.items()
    }
    shapes |= {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    return shapes if config.tie_word_embeddings else shapes | {"lm_head.weight": (config.vocab_size, hidden)}


def _read_weights(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the folder's files, memory-mapped."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 the file is no mapping
                if not name.endswith(DERIVED):
                    yield bare_name(name), file.get_tensor(name)


class PlainModel(nn.Module):
    """Module tree with the weights under their names in the files, as `CompactBackbone` expects it."""

    def __init__(self, config: PlainConfig, weights: Weights, kernels: CDLL | None) -> None:
        super().__init__()
        self.model = PlainDecoder(config, WeightTree(weights, "model", kernels))
        self.lm_head = WeightTree(weights, "model" if config.tie_word_embeddings else "", kernels).linear(
            "embed_tokens" if config.tie_word_embeddings else "lm_head"
        )


class WeightTree:
    """Weights below one module name, from which modules are built without torch's random initialization."""

    def __init__(self, weights: Weights, prefix: str, kernels: CDLL | None) -> None:
        self._weights = weights
        self._prefix = prefix
        self._kernels = kernels

    def below(self, name: str) -> "WeightTree":
        """The weights of a submodule."""
        return WeightTree(self._weights, self._path(name), self._kernels)

    def parameter(self, name: str) -> nn.Parameter:
        """One weight as a parameter."""
        weight = self._weights[self._path(name)]
        assert isinstance(weight, Tensor), "only matrices are quantized"
        return nn.Parameter(weight, requires_grad=False)

    def linear(self, name: str) -> nn.Linear | QuantizedLinear:
        """A linear layer, with a bias if the files contain one."""
        below = self.below(name)
        weight, bias = (self._weights.get(below._path(part)) for part in ("weight", "bias"))
        assert bias is None or isinstance(bias, Tensor), "only matrices are quantized"
        if isinstance(weight, PackedWeight):
            return QuantizedLinear(weight, bias, choose_product(self._kernels))
        linear = nn.Linear(1, 1, bias=bias is not None)
        linear.weight = below.parameter("weight")
        linear.out_features, linear.in_features = linear.weight.shape
        if bias is not None:
            linear.bias = below.parameter("bias")
        return linear

    def embedding(self, name: str, dtype: torch.dtype) -> nn.Embedding | QuantizedEmbedding:
        """Rows of a weight, in this type."""
        below = self.below(name)
        weight = self._weights[below._path("weight")]
        if isinstance(weight, PackedWeight):
            return QuantizedEmbedding(weight, dtype, choose_look_up(self._kernels))
        return nn.Embedding.from_pretrained(below.parameter("weight"))  # type: ignore[no-untyped-call, no-any-return]

    def _path(self, name: str) -> str:
        return f"{self._prefix}.{name}".lstrip(".")


class PlainDecoder(nn.Module):
    """Embedding, layers and last norm."""

    def __init__(self, config: PlainConfig, weights: WeightTree) -> None:
        super().__init__()
        self.norm = PlainNorm(config, weights.below("norm"))
        self.embed_tokens = weights.embedding("embed_tokens", self.norm.weight.dtype)
        self.layers = nn.ModuleList(
            [PlainLayer(config, weights.below(f"layers.{index}")) for index in range(config.num_hidden_layers)]
        )
        self.rotary_emb = Rotary(config)


class PlainLayer(nn.Module):
    """Attention and MLP, each after its norm."""

    def __init__(self, config: PlainConfig, weights: WeightTree) -> None:
        super().__init__()
        self.self_attn = PlainAttention(config, weights.below("self_attn"))
        self.mlp = PlainMlp(weights.below("mlp"))
        self.input_layernorm = PlainNorm(config, weights.below("input_layernorm"))
        self.post_attention_layernorm = PlainNorm(config, weights.below("post_attention_layernorm"))


class PlainAttention(nn.Module):
    """Attention weights. Qwen2 has biases on queries, keys and values; Qwen3 norms each query and key head."""

    def __init__(self, config: PlainConfig, weights: WeightTree) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.q_proj, self.k_proj = weights.linear("q_proj"), weights.linear("k_proj")
        self.v_proj, self.o_proj = weights.linear("v_proj"), weights.linear("o_proj")
        if config.model_type == "qwen3":
            self.q_norm = PlainNorm(config, weights.below("q_norm"))
            self.k_norm = PlainNorm(config, weights.below("k_norm"))


class PlainMlp(nn.Module):
    """MLP weights: gate, up and down."""

    def __init__(self, weights: WeightTree) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = weights.linear("gate_proj"), weights.linear("up_proj")
        self.down_proj = weights.linear("down_proj")
        self.act_fn = nn.SiLU()


class PlainNorm(nn.Module):
    """Weight of an RMS norm."""

    def __init__(self, config: PlainConfig, weights: WeightTree) -> None:
        super().__init__()
        self.weight = weights.parameter("weight")
        self.variance_epsilon = config.rms_norm_eps


class Rotary(nn.Module):
    """Angles of rotary positions (Su et al., RoFormer), computed in float32 as transformers does."""

    inv_freq: Tensor

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
        self.register_buffer("inv_freq", 1.0 / (config.rope_theta**steps), persistent=False)

    def forward(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [rows, num_tokens] -> cosines and sines [rows, num_tokens, head_dim] in the type of hidden."""
        angles = positions[..., None].float() * self.inv_freq
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
