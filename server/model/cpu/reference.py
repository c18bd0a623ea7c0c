"""Small random decoders of every form that the kernels know, and their results in float64, one sequence alone.

Modules have transformers' names. The recurrent state is computed token by token, as its definition says.
"""

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.config_json import LEAST_OUTPUTS
from server.model.adapters.weights import AdapterWeights, Factors, find_targets
from server.model.layers.recurrent import RecurrentShape
from server.model.quantization.experts import QuantizedExperts
from server.model.quantization.linear import QuantizedLinear, multiply_unpacked
from server.model.quantization.quantize import quantize

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 32
HIDDEN, INNER = 64, 544  # short rows and long ones
KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, KERNEL = 2, 4, 16, 48, 4  # of recurrent states
EXPERTS, SHARED = 4, 32
NUM_IDS = 17
RANKS = (5, 19)  # of adapters
EPSILON = 1e-6
KEYS, VALUES = KEY_HEADS * KEY_DIM, VALUE_HEADS * VALUE_DIM
STATE = RecurrentShape((0,), 2 * KEYS + VALUES, KERNEL, VALUE_HEADS, KEY_DIM, VALUE_DIM)


def dense_decoder(dtype: torch.dtype) -> Any:
    """One layer with biases, norms of heads and an MLP."""
    layer = _layer(dtype, _mlp(INNER, dtype), self_attn=_attention(dtype, is_gated=False))
    return _decoder([layer], HEAD_DIM, dtype, _norm(HIDDEN, dtype))


def hybrid_decoder(dtype: torch.dtype, *, grouped: bool) -> Any:
    """A layer with a recurrent state, then one with gated attention; experts in both, shared ones in the first.

    `grouped`: projections come key head by key head.
    """
    first = _layer(dtype, _experts(dtype, has_shared=True), linear_attn=_mixer(dtype, grouped))
    second = _layer(dtype, _experts(dtype, has_shared=False), self_attn=_attention(dtype, is_gated=True))
    for layer in (first, second):
        layer.input_layernorm = _centred_norm(HIDDEN, dtype)
        layer.post_attention_layernorm = _centred_norm(HIDDEN, dtype)
    return _decoder([first, second], HEAD_DIM // 4, dtype, _centred_norm(HIDDEN, dtype))


def quantized(decoder: Any) -> Any:
    """The same with the linear layers of attention, MLPs and recurrent states, and the experts, in four bits."""
    for layer in decoder.layers:
        if hasattr(layer.mlp, "experts"):
            stacked = (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj)
            gate_up, down = (quantize(weight.flatten(0, 1), 4) for weight in stacked)
            layer.mlp.experts = QuantizedExperts(gate_up, down, functional.silu, multiply_unpacked)
        for part in vars(layer).values():
            for name, found in [one for one in vars(part).items() if isinstance(one[1], nn.Linear)]:
                if found.out_features >= LEAST_OUTPUTS:
                    setattr(part, name, QuantizedLinear(quantize(found.weight, 4), found.bias))
    return decoder


def random_adapter(decoder: Any, dtype: torch.dtype) -> AdapterWeights:
    """An adapter of every linear layer that one may change, of ranks below and above a register."""
    factors = {}
    for number, (part, size) in enumerate(find_targets(decoder).items()):
        rank = RANKS[number % len(RANKS)]
        down, up = torch.randn(rank, size.inputs) / size.inputs**0.5, torch.randn(size.outputs, rank) / rank**0.5
        factors[part] = Factors(down.to(dtype), up.to(dtype), 0.5)  # an exact scale in every type
    return AdapterWeights(factors, b"")


def with_adapter(decoder: Any, adapter: AdapterWeights) -> Any:
    """A copy of a decoder that is not quantized, with an adapter in its weights, in float64."""
    changed = copy.deepcopy(decoder)
    for part, factors in adapter.factors.items():
        parent, _, own = part.module.partition(".")
        linear = getattr(getattr(changed.layers[part.layer], parent), own)
        share = (factors.up.double() @ factors.down.double()) * factors.scale
        linear.weight = nn.Parameter(linear.weight.double() + share, requires_grad=False)
    return changed


def compute(decoder: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """[num_tokens] -> hidden states [num_tokens, HIDDEN] in float64."""
    angles = tuple(angle[0, :, None].double() for angle in decoder.rotary_emb(torch.empty(0), positions[None]))
    stream: Tensor = decoder.embed_tokens(ids).double()
    for layer in decoder.layers:
        normed = _normed(stream, layer.input_layernorm)
        mixes = hasattr(layer, "linear_attn")
        stream = stream + (_recur(layer.linear_attn, normed) if mixes else _attended(layer.self_attn, normed, angles))
        normed = _normed(stream, layer.post_attention_layernorm)
        stream = stream + (_expert_results if hasattr(layer.mlp, "experts") else _fed)(layer.mlp, normed)
    return _normed(stream, decoder.norm)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of one sequence: [num_tokens, heads, HEAD_DIM] -> the same."""
    keys, values = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * HEAD_DIM**-0.5
    future = torch.ones(len(queries), len(queries), dtype=torch.bool).triu(1)
    attended: Tensor = torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -torch.inf).softmax(-1), values)
    return attended


def round_to_bytes(numbers: Tensor) -> Tensor:
    """Keys or values [..., HEAD_DIM] as a cache of bytes gives them back, in float32."""
    most = numbers.float().abs().amax(-1, keepdim=True)
    return (numbers.float() * (127 / most)).round() * (most / 127)


def linear(inputs: int, outputs: int, dtype: torch.dtype, has_bias: bool = False) -> nn.Linear:
    """A layer with random weights."""
    return nn.Linear(inputs, outputs, has_bias, dtype=dtype).requires_grad_(False)


def _decoder(layers: list[Any], rotated: int, dtype: torch.dtype, norm: Any) -> Any:
    embedding = nn.Embedding(NUM_IDS, HIDDEN, dtype=dtype).requires_grad_(False)
    return SimpleNamespace(embed_tokens=embedding, rotary_emb=Angles(rotated), layers=layers, norm=norm)


class Angles:
    """Cosines and sines of rotary positions."""

    def __init__(self, rotated: int) -> None:
        self.inv_freq = 100.0 ** -(torch.arange(0, rotated, 2) / rotated)

    def __call__(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [rows, num_tokens] -> [rows, num_tokens, rotated] in the type of `like`."""
        angles = (positions[..., None] * self.inv_freq).repeat(1, 1, 2)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _layer(dtype: torch.dtype, mlp: Any, **mixer: Any) -> Any:
    norms = {name: _norm(HIDDEN, dtype) for name in ("input_layernorm", "post_attention_layernorm")}
    return SimpleNamespace(mlp=mlp, **norms, **mixer)


def _attention(dtype: torch.dtype, *, is_gated: bool) -> Any:
    sizes = {"q_proj": HEADS * (1 + is_gated), "k_proj": KV_HEADS, "v_proj": KV_HEADS}
    projections = {name: linear(HIDDEN, size * HEAD_DIM, dtype, has_bias=True) for name, size in sizes.items()}
    norm = _centred_norm if is_gated else _norm
    return SimpleNamespace(
        **projections,
        o_proj=linear(HEADS * HEAD_DIM, HIDDEN, dtype),
        q_norm=norm(HEAD_DIM, dtype),
        k_norm=norm(HEAD_DIM, dtype),
        head_dim=HEAD_DIM,
        scaling=HEAD_DIM**-0.5,
    )


def _mlp(inner: int, dtype: torch.dtype) -> Any:
    return SimpleNamespace(
        gate_proj=linear(HIDDEN, inner, dtype), up_proj=linear(HIDDEN, inner, dtype),
        down_proj=linear(inner, HIDDEN, dtype),
    )  # fmt: skip


def _experts(dtype: torch.dtype, *, has_shared: bool) -> Any:
    """In bfloat16 every expert is chosen: rounding of scores would change the choice."""
    experts = SimpleNamespace(
        gate_up_proj=_parameter(EXPERTS, 2 * INNER, HIDDEN, dtype=dtype),
        down_proj=_parameter(EXPERTS, HIDDEN, INNER, dtype=dtype),
    )
    chosen = 2 if dtype == torch.float32 else EXPERTS
    gate = SimpleNamespace(weight=_parameter(EXPERTS, HIDDEN, dtype=dtype), top_k=chosen, norm_topk_prob=not has_shared)
    shared = {"shared_expert": _mlp(SHARED, dtype), "shared_expert_gate": linear(HIDDEN, 1, dtype)}
    return SimpleNamespace(experts=experts, gate=gate, **(shared if has_shared else {}))


def _mixer(dtype: torch.dtype, grouped: bool) -> Any:
    sizes = {"qkvz": 2 * KEYS + 2 * VALUES, "ba": 2 * VALUE_HEADS}
    if not grouped:
        sizes = {"qkv": 2 * KEYS + VALUES, "z": VALUES, "b": VALUE_HEADS, "a": VALUE_HEADS}
    return SimpleNamespace(
        **{f"in_proj_{name}": linear(HIDDEN, size, dtype) for name, size in sizes.items()},
        out_proj=linear(VALUES, HIDDEN, dtype),
        conv1d=SimpleNamespace(weight=_parameter(2 * KEYS + VALUES, 1, KERNEL, dtype=dtype)),
        A_log=torch.rand(VALUE_HEADS),
        dt_bias=torch.rand(VALUE_HEADS),
        norm=_norm(VALUE_DIM, dtype),
        num_k_heads=KEY_HEADS,
        num_v_heads=VALUE_HEADS,
        head_k_dim=KEY_DIM,
        head_v_dim=VALUE_DIM,
        conv_kernel_size=KERNEL,
    )


def _parameter(*sizes: int, dtype: torch.dtype) -> nn.Parameter:
    weight = torch.randn(*sizes) / sizes[-1] ** 0.5
    return nn.Parameter(weight.to(dtype), requires_grad=False)


def _norm(size: int, dtype: torch.dtype) -> Any:
    return SimpleNamespace(weight=(1 + 0.1 * torch.randn(size)).to(dtype), variance_epsilon=EPSILON)


def _centred_norm(size: int, dtype: torch.dtype) -> Any:
    return SimpleNamespace(weight=(0.1 * torch.randn(size)).to(dtype), eps=EPSILON)


def _project(layer: nn.Linear | QuantizedLinear, inputs: Tensor) -> Tensor:
    weight: Tensor = layer.packed.unpack() if isinstance(layer, QuantizedLinear) else layer.weight
    return functional.linear(inputs, weight.double(), None if layer.bias is None else layer.bias.double())


def _normed(values: Tensor, norm: Any) -> Tensor:
    weight: Tensor = norm.weight.double() + hasattr(norm, "eps")
    return values * (values.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weight


def _attended(attention: Any, normed: Tensor, angles: tuple[Tensor, ...]) -> Tensor:
    def heads(projection: nn.Linear | QuantizedLinear) -> Tensor:
        return _project(projection, normed).view(len(normed), -1, HEAD_DIM)

    queries, keys, gates = heads(attention.q_proj), heads(attention.k_proj), None
    if queries.shape[1] == 2 * HEADS:
        queries, gates = queries[:, 0::2], queries[:, 1::2]
    queries, keys = _turned(queries, attention.q_norm, angles), _turned(keys, attention.k_norm, angles)
    results = attend(queries, keys, heads(attention.v_proj))
    return _project(attention.o_proj, (results if gates is None else results * gates.sigmoid()).flatten(1))


def _turned(heads: Tensor, norm: Any, angles: tuple[Tensor, ...]) -> Tensor:
    cosines, sines = angles
    heads = _normed(heads, norm)
    own, rest = heads[..., : cosines.shape[-1]], heads[..., cosines.shape[-1] :]
    low, high = own.chunk(2, -1)
    return torch.cat((own * cosines + torch.cat((-high, low), -1) * sines, rest), -1)


def _fed(mlp: Any, normed: Tensor) -> Tensor:
    opened = functional.silu(_project(mlp.gate_proj, normed)) * _project(mlp.up_proj, normed)
    return _project(mlp.down_proj, opened)


def _expert_results(mlp: Any, normed: Tensor) -> Tensor:
    experts, gate = mlp.experts, mlp.gate
    portions, chosen = (normed @ gate.weight.double().T).softmax(-1).topk(gate.top_k)
    if gate.norm_topk_prob:
        portions = portions / portions.sum(-1, keepdim=True)
    if isinstance(experts, QuantizedExperts):
        gate_up, down = (
            part.packed.unpack().view(EXPERTS, -1, part.packed.inputs) for part in (experts.gate_up, experts.down)
        )
    else:
        gate_up, down = experts.gate_up_proj, experts.down_proj
    opening, up = torch.einsum("th,eoh->teo", normed, gate_up.double()).chunk(2, -1)
    each = torch.einsum("tei,ehi->teh", functional.silu(opening) * up, down.double())
    results: Tensor = (each.gather(1, chosen[..., None].expand(-1, -1, HIDDEN)) * portions[..., None]).sum(1)
    if hasattr(mlp, "shared_expert"):
        results = results + _project(mlp.shared_expert_gate, normed).sigmoid() * _fed(mlp.shared_expert, normed)
    return results


def _recur(mixer: Any, normed: Tensor) -> Tensor:
    mixed, gates, beta, decay = _mixed(mixer, normed)
    padded = functional.pad(mixed.T, (KERNEL - 1, 0))
    convolved = functional.silu(functional.conv1d(padded, mixer.conv1d.weight.double(), groups=len(padded))).T
    queries, keys, values = torch.split(convolved, [KEYS, KEYS, VALUES], -1)
    queries, keys = (_unit(part.view(-1, KEY_HEADS, KEY_DIM)) for part in (queries, keys))
    values = values.reshape(-1, VALUE_HEADS, VALUE_DIM)
    fades = (-mixer.A_log.double().exp() * functional.softplus(decay + mixer.dt_bias.double())).exp()
    state, results = torch.zeros(VALUE_HEADS, KEY_DIM, VALUE_DIM, dtype=torch.float64), []
    for query, key, value, fade, rate in zip(queries, keys, values, fades, beta.sigmoid(), strict=True):
        state = state * fade[:, None, None]
        added = (value - torch.einsum("hkv,hk->hv", state, key)) * rate[:, None]
        state = state + key[..., None] * added[:, None]
        results.append(torch.einsum("hkv,hk->hv", state, query) * KEY_DIM**-0.5)
    opened = _normed(torch.stack(results), mixer.norm) * functional.silu(gates.view(-1, VALUE_HEADS, VALUE_DIM))
    return _project(mixer.out_proj, opened.flatten(1))


def _mixed(mixer: Any, normed: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values; gates; beta and decay: all in the order of their heads."""
    if not hasattr(mixer, "in_proj_qkvz"):
        return tuple(_project(getattr(mixer, f"in_proj_{name}"), normed) for name in ("qkv", "z", "b", "a"))
    group = VALUE_HEADS // KEY_HEADS
    heads = _project(mixer.in_proj_qkvz, normed).view(len(normed), KEY_HEADS, -1)
    parts = torch.split(heads, [KEY_DIM, KEY_DIM, group * VALUE_DIM, group * VALUE_DIM], -1)
    rates = torch.split(_project(mixer.in_proj_ba, normed).view(len(normed), KEY_HEADS, -1), [group, group], -1)
    queries, keys, values, gates, beta, decay = (part.flatten(1) for part in (*parts, *rates))
    return torch.cat((queries, keys, values), -1), gates, beta, decay


def _unit(heads: Tensor) -> Tensor:
    """Heads of length 1, repeated for the value heads that share them."""
    lengths = (heads.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    return (heads / lengths).repeat_interleave(VALUE_HEADS // KEY_HEADS, 1)
