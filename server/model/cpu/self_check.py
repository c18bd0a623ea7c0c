"""Comparison of the compiled CPU kernels with float64, on small random sizes, at every start.

Forms: products with weights in rows and in panels, in one stretch and in two, for every size of a tile, and those of
few bits (`quantized_check.py`); greedy ids; attention over the cache, of elements and of bytes; whole layers with
biases, norms, rotary positions, adapters, experts and recurrent states, plain and quantized.
"""

from collections.abc import Iterator
from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor

from server.model.adapters.step import AdapterRun, StepAdapters
from server.model.adapters.weights import AdapterWeights
from server.model.attention.base import PoolShape
from server.model.attention.step_plan import RowPlan
from server.model.cpu.layer_reader import DTYPES
from server.model.cpu.native import NativeBackbone, NativeHead, NativePool
from server.model.cpu.quantized_check import differing_products
from server.model.cpu.reference import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    NUM_IDS,
    STATE,
    attend,
    compute,
    dense_decoder,
    hybrid_decoder,
    linear,
    quantized,
    random_adapter,
    round_to_bytes,
    with_adapter,
)
from server.model.layers.recurrent import RecurrentStep, StatePool, StateRow

SIZES = {"products in panels": 96, "products in rows": 544, "long products": 1056}
TOKENS = (*range(1, 18), 33, 47, 64, 65, 80)  # of every tile of every set, and more than one
OUTPUTS = 39  # two full groups and one that is not
BLOCK_SIZES = (10, 32)  # one that is no multiple of a register or tile
EXACT = 1e-5  # of the sum of magnitudes: products are summed in float32 for both types
FEW_BITS_TOLERANCE = 5e-4  # of two layers whose products round their inputs to sixteen bits
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
        for of_bytes, form in ((False, "attention"), (True, "attention over bytes")):
            if not all(_attention_agrees(library, dtype, block_size, of_bytes) for block_size in BLOCK_SIZES):
                yield f"{form} in {name}"
        if not _layers_agree(library, dtype, dense_decoder(dtype)):
            yield f"layers in {name}"
        if not _layers_agree(library, dtype, quantized(dense_decoder(dtype)), of_few_bits=True):
            yield f"layers of few bits in {name}"
        decoder = dense_decoder(dtype)
        if not _layers_agree(library, dtype, decoder, random_adapter(decoder, dtype)):
            yield f"adapters in {name}"
        if not _layers_agree(library, dtype, hybrid_decoder(dtype, grouped=False)):
            yield f"layers with experts and recurrent states in {name}"
        if not _layers_agree(library, dtype, quantized(hybrid_decoder(dtype, grouped=True)), of_few_bits=True):
            yield f"layers with experts and recurrent states of few bits in {name}"
    yield from differing_products(library)


def _products_agree(library: CDLL, dtype: torch.dtype, size: int) -> bool:
    """Logits are close, equal bits for any number of tokens, and greedy ids are their maxima."""
    layer, inputs = linear(size, OUTPUTS, dtype), torch.randn(max(TOKENS), size).to(dtype)
    weights = layer.weight.double()
    expected, magnitude = inputs.double() @ weights.T, inputs.double().abs() @ weights.abs().T
    head = NativeHead(layer, library)
    found = head(inputs).clone()
    is_close = bool(((found - expected).abs() <= EXACT * magnitude).all())
    is_equal = all(torch.equal(head(inputs[:count]), found[:count]) for count in TOKENS)
    return is_close and is_equal and torch.equal(head.greedy_ids(inputs), found.argmax(-1))


def _attention_agrees(library: CDLL, dtype: torch.dtype, block_size: int, of_bytes: bool) -> bool:
    """A prompt, then one token and eight behind it; what else is in the cache is NaN."""
    num_tokens, num_blocks = 2 * block_size + 5, 4
    shape = PoolShape(block_size, 1, KV_HEADS, HEAD_DIM, dtype, of_bytes)
    pool = NativePool(shape, num_blocks, library)
    for part in (*pool.keys, *pool.values):
        part.fill_(-1 if of_bytes else torch.nan)  # four bytes of -1 are a scale of NaN
    sizes = (HEADS, KV_HEADS, KV_HEADS)
    queries, keys, values = (torch.randn(num_tokens, count, HEAD_DIM).to(dtype) for count in sizes)
    parts = []
    for begin, end in ((0, num_tokens - 9), (num_tokens - 9, num_tokens - 8), (num_tokens - 8, num_tokens)):
        own = slice(begin, end)
        step = pool.arrange([RowPlan(end - begin, begin, [3, 0, 2])], {0: 0})
        parts.append(step.attend(0, queries[own], keys[own], values[own], HEAD_DIM**-0.5))
    if of_bytes:
        keys, values = round_to_bytes(keys), round_to_bytes(values)
    expected = attend(queries.double(), keys.double(), values.double())
    return _is_close(torch.cat(parts), expected, TOLERANCES[dtype])


def _layers_agree(
    library: CDLL,
    dtype: torch.dtype,
    decoder: Any,
    adapter: AdapterWeights | None = None,
    *,
    of_few_bits: bool = False,
) -> bool:
    """A prompt, then one token behind it, with an adapter or without."""
    ids = positions = torch.arange(NUM_IDS)
    # First: the kernels replace short rows by panels.
    expected = compute(decoder if adapter is None else with_adapter(decoder, adapter), ids, positions)
    last = len(decoder.layers) - 1  # the one with attention
    pool = NativePool(PoolShape(BLOCK_SIZES[0], 1, KV_HEADS, HEAD_DIM, dtype), 3, library)
    states = StatePool(STATE, 2, dtype, torch.device("cpu"))
    for part in (*states.convolution.values(), *states.recurrent.values()):
        part.fill_(torch.nan)
    backbone = NativeBackbone(decoder, library)
    adapted = None if adapter is None else backbone.adapt(adapter)
    parts = []
    for begin, end in ((0, NUM_IDS - 1), (NUM_IDS - 1, NUM_IDS)):
        own = slice(begin, end)
        step = pool.arrange([RowPlan(end - begin, begin, [2, 1])], {last: 0})
        recurrent = RecurrentStep(states, [StateRow(end - begin, begin, 1)])
        adapters = None if adapted is None else StepAdapters((AdapterRun(0, end - begin, adapted),))
        parts.append(backbone(ids[own], positions[own], step, recurrent if last else None, adapters))
    tolerance = max(TOLERANCES[dtype], FEW_BITS_TOLERANCE) if of_few_bits else TOLERANCES[dtype]
    return _is_close(torch.cat(parts), expected, tolerance)


def _is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(((found.double() - expected).abs() <= tolerance * (1 + expected.abs())).all())  # False for NaN
