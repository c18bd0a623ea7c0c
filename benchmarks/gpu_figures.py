"""Task, figure, table of figures and model of random weights: what the measurements on a GPU have in common."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.checkpoint import config_of
from server.model.attention.base import paged_attention
from server.model.loading.pretrained import ATTENTION_NAME

FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, ImportError, AssertionError, MemoryError)
NO_TIME, TIME_LIMIT = "no time left", "time limit"


@dataclass(frozen=True, slots=True)
class Task:
    """The workload: streams of `prompt_tokens` each, decoded for `steps`."""

    batches: tuple[int, ...]
    prompt_tokens: int
    steps: int
    deadline_s: float  # of time.monotonic


Way = Callable[[int, Task], tuple[float, float]]  # batch -> seconds of all prompts, decoded tokens per second


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement; `fault` is the reason if there is none."""

    shape: str
    way: str
    batch: int
    tok_per_s: float | None = None
    share_of_limit: float | None = None
    first_s: float | None = None  # prefill of all prompts
    fault: str | None = None


def measure(empty: Figure, way: Way, most: float | None, task: Task) -> Figure:
    """The figure of one way at one batch size; `most`: tokens per second at the limit. Faults are recorded."""
    if time.monotonic() > task.deadline_s:
        return Figure(empty.shape, empty.way, empty.batch, fault=NO_TIME)
    try:
        first_s, rate = way(empty.batch, task)
    except FAULTS as error:
        return Figure(empty.shape, empty.way, empty.batch, fault=f"{type(error).__name__}: {error}"[:300])
    return Figure(empty.shape, empty.way, empty.batch, rate, rate / most if most else None, first_s)


def table(figures: Sequence[Figure]) -> list[str]:
    """A line for each shape and way: tokens per second and share of the limit at each batch size."""
    lines: dict[tuple[str, str], list[str]] = {}
    for one in figures:
        cells = lines.setdefault((one.shape, one.way), [])
        share = "" if one.share_of_limit is None else f" {one.share_of_limit:.0%}"
        cells.append(
            f"{one.batch}: " + ((one.fault or "?")[:60] if one.tok_per_s is None else f"{one.tok_per_s:.0f}{share}")
        )
    return [f"{shape:5} {way:34} " + " | ".join(cells) for (shape, way), cells in lines.items()]


def random_model(shape: str, device: torch.device, attention: str) -> Any:
    """A model of this shape with random bfloat16 weights, created on the device."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config_of(shape), dtype=torch.bfloat16, attn_implementation=attention
        )
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return model.train(False).requires_grad_(False)


def device_name(device: torch.device) -> str:
    """The card's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
