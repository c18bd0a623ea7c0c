"""Comparison of the compiled CPU kernels with float64, on small random sizes, at every start.

Forms: products with weights in rows and in panels, in one stretch and in two, for every size of a tile; greedy ids;
attention over the cache; a whole layer with biases, norms and rotary positions.
"""

from collections.abc import Iterator
from ctypes import CDLL
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from server.model.attention.base import PoolShape
from server.model.attention.step_plan import RowPlan
from server.model.cpu.native import DTYPES, NativeBackbone, NativeHead, NativePool

SIZES = {"products in panels": 96, "products in rows": 544, "long products": 1056}
MOST_TOKENS = 13  # more than two tiles of any set
OUTPUTS = 39  # two full groups and one that is not
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 6, 2, 32, 10
HIDDEN, INNER = 64, 544
EPSILON = 1e-6
EXACT = 1e-5  # of the sum of magnitudes: products are summed in float32 for both types
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # of a layer's results, which are of magnitude 1


def find_difference(library: CDLL) -> str | None:
    """The first form that differs from float64, or None. The caller's random numbers are left as they are."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        return next(_differing(library), None)


def _differing(library: CDLL) -> Iterator[str]:
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for form, size in SIZES.items():
            if not _products_agree(library, dtype, size):
                yield f"{form} of {name}"
        if not _attention_agrees(library, dtype):
            yield f"attention in {name}"
        if not _layers_agree(library, dtype):
            yield f"layers in {name}"


def _products_agree(library: CDLL, dtype: torch.dtype, size: int) -> bool:
    """Logits are close, equal bits for any number of tokens, and greedy ids are their maxima."""
    linear, inputs = _linear(size, OUTPUTS, dtype), torch.randn(MOST_TOKENS, size).to(dtype)
    weights = linear.weight.double()
    expected, magnitude = inputs.double() @ weights.T, inputs.double().abs() @ weights.abs().T
    head = NativeHead(linear, library)
    found = head(inputs).clone()
    is_close = bool(((found - expected).abs() <= EXACT * magnitude).all())
    is_equal = all(torch.equal(head(inputs[:count]), found[:count]) for count in range(1, MOST_TOKENS))
    return is_close and is_equal and torch.equal(head.greedy_ids(inputs), found.argmax(-1))


def _attention_agrees(library: CDLL, dtype: torch.dtype) -> bool:
    """A prompt, then one token and three behind it; the block beside them is NaN."""
    shape = PoolShape(BLOCK_SIZE, 1, KV_HEADS, HEAD_DIM, dtype)
    pool = NativePool(shape, 4, library)
    for part in (*pool.keys, *pool.values):
        part.fill_(torch.nan)
    queries, keys, values = (torch.randn(25, count, HEAD_DIM).to(dtype) for count in (HEADS, KV_HEADS, KV_HEADS))
    parts = []
    for begin, end in ((0, 21), (21, 22), (22, 25)):
        own = slice(begin, end)
        step = pool.arrange([RowPlan(end - begin, begin, [3, 0, 2])], {0: 0})
        parts.append(step.attend(0, queries[own], keys[own], values[own], HEAD_DIM**-0.5))
    expected = _attend(queries.double(), keys.double(), values.double())
    return _is_close(torch.cat(parts), expected, TOLERANCES[dtype])


def _layers_agree(library: CDLL, dtype: torch.dtype) -> bool:
    decoder = _decoder(dtype)
    ids, positions = torch.arange(17), torch.arange(17)
    expected = _compute(decoder, ids, positions)  # first: the kernels replace short rows by panels
    pool = NativePool(PoolShape(BLOCK_SIZE, 1, KV_HEADS, HEAD_DIM, dtype), 3, library)
    backbone = NativeBackbone(decoder, library)
    parts = []
    for begin, end in ((0, 16), (16, 17)):
        own = slice(begin, end)
        step = pool.arrange([RowPlan(end - begin, begin, [2, 1])], {0: 0})
        parts.append(backbone(ids[own], positions[own], step, None))
    return _is_close(torch.cat(parts), expected, TOLERANCES[dtype])


def _is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(((found.double() - expected).abs() <= tolerance * (1 + expected.abs())).all())  # False for NaN


def _linear(inputs: int, outputs: int, dtype: torch.dtype, has_bias: bool = False) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, has_bias, dtype=dtype)
    return linear.requires_grad_(False)


def _norm(size: int, dtype: torch.dtype) -> Any:
    return SimpleNamespace(weight=(1 + 0.1 * torch.randn(size)).to(dtype), variance_epsilon=EPSILON)


def _decoder(dtype: torch.dtype) -> Any:
    """One random layer, with transformers' names."""
    sizes = {"q_proj": HEADS * HEAD_DIM, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}
    attention = SimpleNamespace(
        **{name: _linear(HIDDEN, size, dtype, has_bias=True) for name, size in sizes.items()},
        o_proj=_linear(HEADS * HEAD_DIM, HIDDEN, dtype),
        q_norm=_norm(HEAD_DIM, dtype),
        k_norm=_norm(HEAD_DIM, dtype),
        head_dim=HEAD_DIM,
        scaling=HEAD_DIM**-0.5,
    )
    mlp = SimpleNamespace(
        gate_proj=_linear(HIDDEN, INNER, dtype),
        up_proj=_linear(HIDDEN, INNER, dtype),
        down_proj=_linear(INNER, HIDDEN, dtype),
    )
    layer = SimpleNamespace(
        self_attn=attention,
        mlp=mlp,
        input_layernorm=_norm(HIDDEN, dtype),
        post_attention_layernorm=_norm(HIDDEN, dtype),
    )
    return SimpleNamespace(
        embed_tokens=nn.Embedding(17, HIDDEN, dtype=dtype).requires_grad_(False),
        rotary_emb=_angles,
        layers=[layer],
        norm=_norm(HIDDEN, dtype),
    )


def _angles(like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    steps = 100.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = (positions[..., None] * steps).repeat(1, 1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _compute(decoder: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """The decoder in float64, over a sequence alone."""
    (layer,) = decoder.layers
    attention, mlp = layer.self_attn, layer.mlp
    cosines, sines = (angle[0, :, None].double() for angle in _angles(torch.empty(0), positions[None]))

    def turned(projection: nn.Linear, norm: Any, normed: Tensor) -> Tensor:
        heads = _normed(_project(projection, normed).view(len(normed), -1, HEAD_DIM), norm)
        low, high = heads.chunk(2, -1)
        return heads * cosines + torch.cat((-high, low), -1) * sines

    stream = decoder.embed_tokens(ids).double()
    normed = _normed(stream, layer.input_layernorm)
    queries, keys = (
        turned(attention.q_proj, attention.q_norm, normed),
        turned(attention.k_proj, attention.k_norm, normed),
    )
    values = _project(attention.v_proj, normed).view(len(normed), -1, HEAD_DIM)
    stream = stream + _project(attention.o_proj, _attend(queries, keys, values).flatten(1))
    normed = _normed(stream, layer.post_attention_layernorm)
    opened = nn.functional.silu(_project(mlp.gate_proj, normed)) * _project(mlp.up_proj, normed)
    return _normed(stream + _project(mlp.down_proj, opened), decoder.norm)


def _project(linear: nn.Linear, inputs: Tensor) -> Tensor:
    return nn.functional.linear(inputs, linear.weight.double(), None if linear.bias is None else linear.bias.double())


def _normed(values: Tensor, norm: Any) -> Tensor:
    weight: Tensor = norm.weight.double()
    return values * (values.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weight


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of one sequence: [tokens, heads, head_dim] -> the same."""
    keys, values = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * HEAD_DIM**-0.5
    future = torch.ones(len(queries), len(queries), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    attended: Tensor = torch.einsum("hqk,khd->qhd", weights, values)
    return attended
