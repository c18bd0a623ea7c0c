"""Layers of a decoder as the kernels read them: weights in place, in panels or of few bits, everything else in float32.

Modules have transformers' names. A layer has attention, with gates or without, or a recurrent state (Gated DeltaNet);
then an MLP or experts.
"""

import ctypes
from collections.abc import Iterable
from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor, nn

from server.model.cpu.library import ExpertsStruct, LayerStruct, MixerStruct, QuantizedStruct
from server.model.cpu.quantized import Described
from server.model.layers.decoder import is_silu
from server.model.layers.recurrent import MIXER
from server.model.quantization.experts import QuantizedExperts
from server.model.quantization.linear import QuantizedLinear
from server.model.quantization.packed_weight import PackedWeight

DTYPES = (torch.bfloat16, torch.float32)
SIZE_MULTIPLE = 32  # of every dimension that products sum over
STATE_MULTIPLE, MAX_STATE = 16, 256  # dimensions of a recurrent state's keys and values (`cpp/delta.h`)
MAX_KERNEL = 8  # tokens of its convolution
MAX_EXPERTS = 1024  # `cpp/experts.h`


def supports_decoder(decoder: Any, head: Any) -> bool:
    """Whether the kernels compute this decoder, with linear layers that they read and an output head without bias."""
    dtype = decoder.norm.weight.dtype
    if dtype not in DTYPES or {weight.dtype for weight in decoder.embed_tokens.parameters()} - {dtype}:
        return False
    attentions = [layer.self_attn for layer in decoder.layers if hasattr(layer, "self_attn")]
    return (
        bool(attentions)
        and _reads((head,), dtype)
        and head.bias is None
        and all(_supports_layer(layer, dtype) for layer in decoder.layers)
        and len({has_gates(attention) for attention in attentions}) == 1
        and 2 * decoder.rotary_emb.inv_freq.numel() <= attentions[0].head_dim
    )


def _supports_layer(layer: Any, dtype: torch.dtype) -> bool:
    mixer = getattr(layer, MIXER, None)
    mixes = _supports_attention(layer.self_attn, dtype) if mixer is None else _supports_mixer(mixer, dtype)
    feeds = _supports_experts if hasattr(layer.mlp, "experts") else _supports_mlp
    return mixes and feeds(layer.mlp, dtype)


def _supports_attention(attention: Any, dtype: torch.dtype) -> bool:
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    has_plain_output = _reads(projections, dtype) and attention.o_proj.bias is None
    return has_plain_output and attention.head_dim % SIZE_MULTIPLE == 0


def _supports_mlp(mlp: Any, dtype: torch.dtype) -> bool:
    linears = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return (
        _reads(linears, dtype)
        and all(linear.bias is None for linear in linears)  # type: ignore[union-attr]
        and isinstance(linears[0], QuantizedLinear) == isinstance(linears[1], QuantizedLinear)
        and is_silu(mlp.act_fn)
    )


def _supports_experts(mlp: Any, dtype: torch.dtype) -> bool:
    experts, shared = mlp.experts, getattr(mlp, "shared_expert", None)
    return (
        _reads_stacked(experts, dtype)
        and _is_plain(mlp.gate.weight, dtype)
        and len(mlp.gate.weight) <= MAX_EXPERTS
        and is_silu(experts.act_fn)
        and (shared is None or (_supports_mlp(shared, dtype) and _is_plain(mlp.shared_expert_gate.weight, dtype)))
    )


def _reads_stacked(experts: Any, dtype: torch.dtype) -> bool:
    if isinstance(experts, QuantizedExperts):
        return bool(experts.gate_up.packed.codes.device.type == "cpu")
    stacked = [getattr(experts, name, None) for name in ("gate_up_proj", "down_proj")]
    return all(_is_plain(weight, dtype) and weight.dim() == 3 for weight in stacked)  # type: ignore[union-attr]


def _supports_mixer(mixer: Any, dtype: torch.dtype) -> bool:
    linears = (*_projections(mixer), mixer.out_proj)
    return (
        _reads(linears, dtype)
        and all(linear.bias is None for linear in linears)
        and all(size % STATE_MULTIPLE == 0 and size <= MAX_STATE for size in (mixer.head_k_dim, mixer.head_v_dim))
        and mixer.conv_kernel_size <= MAX_KERNEL
        and mixer.conv1d.bias is None
        and mixer.activation == "silu"
    )


def _reads(linears: Iterable[Any], dtype: torch.dtype) -> bool:
    return all(
        linear.packed.codes.device.type == "cpu"
        if isinstance(linear, QuantizedLinear)
        else type(linear) is nn.Linear and _is_plain(linear.weight, dtype)
        for linear in linears
    )


def _is_plain(weight: Any, dtype: torch.dtype) -> bool:
    # A weight that others quantized is a tensor of another class with the dtype of its results; it has no address.
    is_own = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == dtype
    return is_own and weight.shape[-1] % SIZE_MULTIPLE == 0


def _projections(mixer: Any) -> list[Any]:
    names = ("qkvz", "ba") if is_grouped(mixer) else ("qkv", "z", "b", "a")
    return [getattr(mixer, f"in_proj_{name}") for name in names]


def has_gates(attention: Any) -> bool:
    """Whether a query head's projection is followed by one that gates its results."""
    return bool(attention.q_proj.out_features == 2 * attention.o_proj.in_features)


def is_grouped(mixer: Any) -> bool:
    """Whether the projections of a recurrent layer come key head by key head, as in Qwen3-Next."""
    return hasattr(mixer, "in_proj_qkvz")


def epsilon_of(norm: Any) -> float:
    """Epsilon of an RMS norm, whose name differs between transformers' classes."""
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)


def pack_panels(linear: nn.Linear | QuantizedLinear, library: CDLL) -> Tensor | Described:
    """A layer's weights as the kernels read them: short rows packed into panels, which replace the layer's weight."""
    if isinstance(linear, QuantizedLinear):
        return Described(linear.packed)
    packed = _pack(linear.weight.detach(), library)
    if packed.data_ptr() != linear.weight.data_ptr():
        linear.weight = nn.Parameter(packed, requires_grad=False)  # a tied embedding keeps its own
    return packed


def _pack(weight: Tensor, library: CDLL) -> Tensor:
    """Weights [outputs, size] in panels if their rows are short, else as they are."""
    weight, is_bf16 = weight.contiguous(), weight.dtype == torch.bfloat16
    outputs, size = weight.shape
    num_bytes = library.toolwire_panel_bytes(is_bf16, size, outputs)
    if not num_bytes:
        return weight
    panels = torch.empty(num_bytes // weight.element_size(), dtype=weight.dtype)
    threads = torch.get_num_threads()
    library.toolwire_lay_out(is_bf16, weight.data_ptr(), size, outputs, panels.data_ptr(), threads)
    return panels


class LayerReader:
    """Structures of layers, norms and other vectors; keeps alive what they point to."""

    def __init__(self, library: CDLL) -> None:
        self._library = library
        self._kept: list[Any] = []

    def layer(self, layer: Any) -> LayerStruct:
        """One layer. Its short rows are packed, in the place of its own."""
        found = LayerStruct(
            attention_norm=self.norm(layer.input_layernorm), mlp_norm=self.norm(layer.post_attention_layernorm)
        )
        if hasattr(layer, MIXER):
            found.mixer = self._keep_struct(self._mixer(getattr(layer, MIXER)))
        else:
            self._add_attention(found, layer.self_attn)
        if hasattr(layer.mlp, "experts"):
            found.experts = self._keep_struct(self._experts(layer.mlp))
        else:
            found.gate, found.up, found.down = self._mlp(layer.mlp)
        return found

    def norm(self, norm: Any) -> int:
        """Address of an RMS norm's weight in float32; zero-centred ones, which transformers gives an `eps`, plus 1."""
        return self._vector(norm.weight.float() + 1 if hasattr(norm, "eps") else norm.weight)

    def _add_attention(self, to: LayerStruct, attention: Any) -> None:
        for name, linear in (("query", attention.q_proj), ("key", attention.k_proj), ("value", attention.v_proj)):
            setattr(to, name, self._linear(linear))
            if linear.bias is not None:
                setattr(to, f"{name}_bias", self._address(linear.bias))
        to.output = self._linear(attention.o_proj)
        if hasattr(attention, "q_norm"):
            to.query_norm, to.key_norm = self.norm(attention.q_norm), self.norm(attention.k_norm)

    def _mlp(self, mlp: Any) -> list[int]:
        return [self._linear(linear) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]

    def _experts(self, mlp: Any) -> ExpertsStruct:
        experts, shared = mlp.experts, getattr(mlp, "shared_expert", None)
        count = len(mlp.gate.weight)
        routers = [mlp.gate.weight] if shared is None else [mlp.gate.weight, mlp.shared_expert_gate.weight]
        found = ExpertsStruct(
            count=count,
            chosen=mlp.gate.top_k,
            shared_inner=0 if shared is None else shared.down_proj.in_features,
            normalizes=getattr(mlp.gate, "norm_topk_prob", True),
            router=self._address(_pack(torch.cat([weight.detach() for weight in routers]), self._library)),
        )
        if isinstance(experts, QuantizedExperts):
            found.inner = experts.down.packed.inputs
            found.gate_up = self._described(experts.gate_up.packed, 2 * count)
            found.down = self._described(experts.down.packed, count)
        else:
            found.inner = experts.down_proj.shape[-1]
            found.gate_up, found.down = self._stacked(experts, "gate_up_proj"), self._stacked(experts, "down_proj")
        if shared is not None:
            found.shared_gate, found.shared_up, found.shared_down = self._mlp(shared)
        return found

    def _mixer(self, mixer: Any) -> MixerStruct:
        found = MixerStruct(
            output=self._linear(mixer.out_proj),
            convolution=self._vector(mixer.conv1d.weight.squeeze(1).T),
            decay_rate=self._vector(-mixer.A_log.float().exp()),
            dt_bias=self._vector(mixer.dt_bias),
            norm=self._vector(mixer.norm.weight),
        )
        fields = ("mixed", "rates") if is_grouped(mixer) else ("mixed", "gate", "rates", "decay")
        for name, linear in zip(fields, _projections(mixer), strict=True):
            setattr(found, name, self._linear(linear))
        return found

    def _linear(self, linear: nn.Linear | QuantizedLinear) -> int:
        packed = pack_panels(linear, self._library)
        self._kept.append(packed)
        return packed.data_ptr()

    def _stacked(self, experts: Any, name: str) -> int:
        """Weights [experts, outputs, size] of all experts, one below the other."""
        packed = _pack(getattr(experts, name).detach().flatten(0, 1), self._library)
        setattr(experts, name, nn.Parameter(packed, requires_grad=False))
        return self._address(packed)

    def _described(self, packed: PackedWeight, count: int) -> int:
        """Matrices of few bits, one below the other: the marked address of their descriptions."""
        size = packed.outputs // count
        parts = [Described(packed.part(index * size, size)) for index in range(count)]
        structs = (QuantizedStruct * count)(*(part.struct for part in parts))
        self._kept += [*parts, structs]
        return ctypes.addressof(structs) | 1

    def _vector(self, values: Tensor) -> int:
        return self._address(values.float())

    def _address(self, tensor: Tensor) -> int:
        own = tensor.detach().contiguous()
        self._kept.append(own)
        return own.data_ptr()

    def _keep_struct(self, struct: ctypes.Structure) -> int:
        self._kept.append(struct)
        return ctypes.addressof(struct)
