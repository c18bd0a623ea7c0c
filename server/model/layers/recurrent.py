"""Recurrent state of linear-attention layers (Gated DeltaNet): one slot a sequence, and a cache view for transformers.

transformers' layers take [rows, tokens, hidden] with one length for all rows, and access their state through a cache
object. Here they get the concatenated tokens of many rows, so each layer is wrapped: rows that decode one token are
computed together, every other row alone, and the cache object gives the layer access to the slots of just those rows.
"""

import math
import mmap
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from server.model.adapters.torch_adapter import AdapterHooks
from server.model.device import to_device

MIXER = "linear_attn"  # attribute of transformers' decoder layers


@dataclass(frozen=True, slots=True)
class RecurrentShape:
    """State of one sequence in each linear-attention layer."""

    layer_indices: tuple[int, ...]
    conv_channels: int
    conv_kernel: int
    value_heads: int
    key_dim: int
    value_dim: int


class StatePool:
    """`num_slots` states. The recurrent part is float32, as transformers' layers compute it."""

    def __init__(self, shape: RecurrentShape, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        convolution = (num_slots, shape.conv_channels, shape.conv_kernel)
        recurrent = (num_slots, shape.value_heads, shape.key_dim, shape.value_dim)
        self.convolution = {i: _zeros(convolution, dtype, device) for i in shape.layer_indices}
        self.recurrent = {i: _zeros(recurrent, torch.float32, device) for i in shape.layer_indices}

    def copy(self, source: int, target: int) -> None:
        """Copy one slot's state to another."""
        for states in (*self.convolution.values(), *self.recurrent.values()):
            states[target].copy_(states[source])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU mapped lazily, so that slots never written take no memory."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = max(1, math.prod(shape) * dtype.itemsize)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)  # keeps `memory` alive


@dataclass(frozen=True, slots=True)
class StateRow:
    """One row of a step. It begins without state if `start` is 0."""

    num_tokens: int
    start: int
    slot: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Consecutive rows computed together, with the same number of tokens each."""

    first_token: int
    num_rows: int
    num_tokens: int  # of each row
    states: "StateView"


@dataclass(frozen=True)
class RecurrentStep:
    """Rows of one step, in the order of their tokens; passed through the model's forward to every layer with a state.

    Those that decode with a state come first.
    """

    pool: StatePool
    rows: Sequence[StateRow]

    @cached_property
    def groups(self) -> tuple[RowGroup, ...]:
        """The rows as transformers' layers compute them."""
        rows, pool = self.rows, self.pool
        decoding = 0
        while decoding < len(rows) and rows[decoding].num_tokens == 1 and rows[decoding].start:
            decoding += 1
        groups = []
        if decoding:
            slots = [row.slot for row in rows[:decoding]]
            groups.append(RowGroup(0, decoding, 1, StateView(pool, slots, is_new=False)))
        first_token = decoding
        for row in rows[decoding:]:
            groups.append(RowGroup(first_token, 1, row.num_tokens, StateView(pool, [row.slot], is_new=row.start == 0)))
            first_token += row.num_tokens
        return tuple(groups)


def recurrent_shape(text: Any) -> RecurrentShape:
    """Read the shape from the text configuration of Qwen3-Next or Qwen3.5."""
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    return RecurrentShape(
        layer_indices=tuple(i for i, kind in enumerate(text.layer_types) if kind == "linear_attention"),
        conv_channels=2 * keys + values,
        conv_kernel=text.linear_conv_kernel_dim,
        value_heads=text.linear_num_value_heads,
        key_dim=text.linear_key_head_dim,
        value_dim=text.linear_value_head_dim,
    )


def wrap_linear_attention(body: nn.Module) -> None:
    """Wrap every linear-attention layer of the model."""
    for layer in body.layers:  # type: ignore[union-attr]
        if hasattr(layer, MIXER):
            setattr(layer, MIXER, RowwiseMixer(getattr(layer, MIXER)))


class RowwiseMixer(nn.Module):
    """A linear-attention layer over the concatenated tokens of all rows."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """[1, num_tokens, hidden] -> the same shape; advances the state of every row."""
        step: RecurrentStep = kwargs["recurrent"]
        adapters: AdapterHooks | None = kwargs.get("adapters")
        parts = []
        for group in step.groups:
            count = group.num_rows * group.num_tokens
            own = hidden_states[0, group.first_token : group.first_token + count]
            with nullcontext() if adapters is None else adapters.window(group.first_token, count):
                part = self.mixer(own.view(group.num_rows, group.num_tokens, -1), cache_params=group.states)
            parts.append(part.flatten(0, 1))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)


class StateView:
    """The part of transformers 5' `Cache` that linear-attention layers call, over the slots of some rows."""

    def __init__(self, pool: StatePool, slots: Sequence[int], *, is_new: bool) -> None:
        self._pool = pool
        self._is_new = is_new
        is_contiguous = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        device = next(iter(pool.recurrent.values())).device
        self._slots = slice(slots[0], slots[0] + len(slots)) if is_contiguous else to_device(slots, device)
        self._conv_view: Tensor | None = None

    def get_conv_state(self, layer_index: int, state_idx: int = 0) -> Tensor | None:
        """[rows, conv_channels, conv_kernel], which the layer may update in place; None if there is no state yet."""
        if self._is_new:
            return None
        # Contiguous slots are a view; others are gathered here and written back with the recurrent state.
        self._conv_view = self._pool.convolution[layer_index][self._slots]
        return self._conv_view

    def get_recurrent_state(self, layer_index: int, state_idx: int = 0) -> Tensor | None:
        """[rows, value_heads, key_dim, value_dim]; None if there is no state yet."""
        return None if self._is_new else self._pool.recurrent[layer_index][self._slots]

    def update_conv_state(self, inputs: Tensor, layer_index: int, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """[rows, conv_channels, tokens] -> the same, preceded by the convolution's previous inputs."""
        kernel = self._pool.shape.conv_kernel
        if self._is_new:
            before = inputs.new_zeros((*inputs.shape[:-1], kernel))
        else:
            before = self._pool.convolution[layer_index][self._slots]
        seen = torch.cat((before, inputs), -1)
        self._conv_view = seen[..., -kernel:]
        return seen

    def update_recurrent_state(self, states: Tensor, layer_index: int, state_idx: int = 0) -> None:
        """Store both states of these rows."""
        self._pool.recurrent[layer_index][self._slots] = states.float()
        if self._conv_view is not None:
            self._pool.convolution[layer_index][self._slots] = self._conv_view
            self._conv_view = None

    def is_recording_past(self, layer_index: int) -> bool:
        """Always False: states cannot be rolled back, and no drafts are verified on these models."""
        return False
